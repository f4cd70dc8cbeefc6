"""moekit: Mixture-of-Experts as plugins.

``moekit.MoELayer`` is the layer; ``moekit.load`` makes a spec of a recipe; ``moekit.build`` builds it. Names are
imported on first use, so that ``import moekit`` and the command line stay fast and import no torch before it is needed.
"""

from __future__ import annotations

from moekit.lazy import from_stub

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = from_stub(__name__, __file__)
