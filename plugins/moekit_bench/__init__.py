"""Benchmarks: sparse layers against dense ones, routers, dispatch alone, and whole training steps.

Every figure is a ratio between variants that run interleaved, in one process: each round runs all of them, so a slow
moment of the machine slows all of them. Milliseconds are printed next to the ratios. ``moekit bench`` is the command;
``docs/benchmarks.md`` says how to read its tables.
"""
