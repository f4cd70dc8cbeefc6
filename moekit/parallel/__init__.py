"""Distributed training: launch, device meshes, sharding, expert-parallel traffic."""
