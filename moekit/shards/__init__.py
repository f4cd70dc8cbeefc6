"""Shards: what a rank holds of tensors, and the layout of a model's parameters."""
