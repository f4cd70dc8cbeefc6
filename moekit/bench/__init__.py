"""What parts cost, measured side by side: layers against dense ones, routers, dispatch alone, whole training steps.

Every figure is a ratio between variants that take turns within each round, in one process, so that a noisy machine
troubles all alike; milliseconds are told beside it. ``moekit bench`` is the command; ``docs/benchmarks.md`` tells how
to read it.
"""
