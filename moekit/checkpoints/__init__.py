"""Checkpoints: directories of safetensors and JSON that are written whole or not at all, and never unpickled.

One format for one process and for many: ``docs/checkpoints.md`` says what lies in a directory.
"""
