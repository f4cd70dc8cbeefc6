"""Triton kernels. Importing one of these files needs the package ``triton``; nothing but a launch should do so.

Whether kernels are compiled or run by Triton's interpreter (``TRITON_INTERPRET=1``) is settled when ``triton`` and they
are imported. All sums are in fp32, whatever comes in. ``UPCAST`` is for the interpreter alone, whose product of bf16
tiles is wrong.

Rows are sorted by expert and cut into tiles of BLOCK_M, no tile over two experts. Which expert and which first row a
tile has is read from two arrays on the device, longer than needed: a tile too many has expert E and returns at once.
"""
