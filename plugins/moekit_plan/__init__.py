"""The size of a run on many devices, before it is started: memory of a device and traffic, for each layout.

Nothing is allocated and nothing is communicated: a model of any size takes seconds. The memory of a forward and
backward pass is measured on tensors without storage, so the plan holds for any model, also a third party's.
"""
