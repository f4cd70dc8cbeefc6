"""Sizing a run on many devices before it is started: bytes per device, and bytes on the wire, for each layout.

Nothing is allocated and nothing communicated: a model of any size takes seconds. What a forward and backward pass
keeps is measured, on tensors that have shapes and no storage, so it holds for any model, a stranger's too.
"""
