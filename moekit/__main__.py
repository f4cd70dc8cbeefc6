"""``python -m moekit``: the same as the command ``moekit``."""

import sys

from moekit.cli import main

sys.exit(main())
