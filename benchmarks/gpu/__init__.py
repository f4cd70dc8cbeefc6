"""What only a card can show, in nine minutes: ``benchmarks/gpu.sh``. Rehearsed on a CPU with ``--rehearse``.

Each part is a module with ``cases``; it runs in a process of its own, because an assertion on a device ends every later
use of it in that process. A part has a time limit, and one that fails or takes too long does not stop the others. Every
result is in the output file as soon as it is known.
"""
