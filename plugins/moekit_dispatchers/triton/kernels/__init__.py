"""Triton kernels. Importing these files needs the package ``triton``; only a launch should do so.

Whether kernels are compiled or interpreted (``TRITON_INTERPRET=1``) is decided when ``triton`` and they are imported.
All sums are in fp32, whatever the inputs' dtype. ``UPCAST`` is for the interpreter, whose bf16 products are wrong.

Rows are sorted by expert and split into tiles of BLOCK_M, no tile with rows of two experts. Two arrays on the device
hold each tile's expert and first row. They are longer than needed: a surplus tile has expert E and returns at once.
"""
