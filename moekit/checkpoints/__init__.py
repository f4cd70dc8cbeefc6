"""Checkpoints: directories of safetensors and JSON files, written atomically, verified by checksums, free of pickle.

The format is the same for one process and for many; ``docs/checkpoints.md`` describes it.
"""
