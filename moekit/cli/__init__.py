"""The command line. Each verb is a file of this package; nothing is imported before it is needed.

A verb's file holds ``SUMMARY``, ``EXAMPLES``, ``add_arguments(parser)`` and ``run(args) -> int``, and imports torch
only inside ``run``. The first page is static text, so that ``moekit --help`` costs no more than starting Python.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

VERBS = {
    "ls": "list recipes and components",
    "show": "explain a component or a recipe",
    "plugins": "list plugins, and what is wrong with those that failed",
    "config": "print, validate or compare specs",
    "params": "count parameters, total and active, part by part",
    "plan": "size a run on many devices: bytes on each of them, bytes on the wire",
    "bench": "measure layers, routers and training steps, side by side",
    "train": "train a recipe",
    "generate": "let a trained language model speak",
    "export": "write a trained model's weights to one safetensors file",
}
"""The verbs with their summaries, in the order of the first page. A test holds each to its file's ``SUMMARY``."""


def main(argv: "Sequence[str] | None" = None) -> int:
    """Runs ``moekit`` with the given arguments (``sys.argv`` when left out).

    Returns:
        The exit code: 0, or what the verb answers; 2 for a user's mistake; 130 when interrupted; 141 when the reader
        of the output has gone. Set ``MOEKIT_DEBUG=1`` to see tracebacks.
    """
    args = sys.argv[1:] if argv is None else list(argv)
    if argv is None and (sys.stdout is None or sys.stderr is None):
        _open_closed()
    if argv is None and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without a letter shows '?', and the command goes on
    try:
        code = _dispatch(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        from moekit.cli import failure

        return failure.interrupted()
    except Exception as error:
        from moekit.cli import failure

        return failure.report(error)


def first_page() -> str:
    """What ``moekit --help`` prints."""
    verbs = "\n".join(f"  {verb:<10}{summary}" for verb, summary in VERBS.items())
    return f"""\
moekit: Mixture-of-Experts as plugins. A paper is a YAML file that names its router, experts, dispatcher and balancers.

usage: moekit <verb> [arguments]
       moekit <verb> --help
       moekit --version [--verbose]

verbs:
{verbs}

examples:
  moekit ls routers                                      what a recipe can say after 'router: {{use: ...}}'
  moekit train deepseek_v3 model.moe.router.top_k=4      train a recipe with one option changed
  moekit config diff deepseek_v3 jacobs1991              how two papers differ
"""


def _open_closed() -> None:
    """Where a shell has closed stdout or stderr (``>&-``) Python has none: what is written goes nowhere."""
    import os

    sys.stdout = sys.stdout or open(os.devnull, "w")
    sys.stderr = sys.stderr or open(os.devnull, "w")


def _dispatch(args: "list[str]") -> int:
    if args[:1] == ["help"]:
        args = [*args[1:2], "--help"]
    verb = args[0] if args else "--help"
    if verb in ("-h", "--help"):
        sys.stdout.write(first_page())
        return 0
    if verb in ("-V", "--version"):
        from moekit.cli import version

        return version.run(args[1:])
    import gc

    collects = gc.isenabled()
    gc.disable()  # what start-up imports is no garbage, and looking for it takes a tenth of the time
    try:
        from moekit.cli import verbs

        return verbs.run(verb, args[1:])
    finally:
        if collects:
            gc.enable()
