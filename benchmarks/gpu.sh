#!/bin/sh
# What only a card can show, in at most nine minutes: checks first, then figures. See benchmarks/gpu/__init__.py.
#
#   benchmarks/gpu.sh                        on a card; moekit must be installed (pip install -e '.[test]')
#   benchmarks/gpu.sh --rehearse             the same on the CPU, with tiny sizes
#   benchmarks/gpu.sh --parts reads,layers   only these parts
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd) || exit
PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH} exec "${PYTHON:-python}" -m gpu "$@"
