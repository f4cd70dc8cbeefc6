"""The command line. Each of moekit's own verbs is a module of this package, imported when it is used.

A verb's module has ``EXAMPLES``, ``add_arguments(parser)`` and ``run(args) -> int``, and imports torch only inside
``run``. The first page is static text, so that ``moekit --help`` takes little longer than starting Python; it lists no
verbs of plugins, which ``moekit help`` does.
"""

import sys

from moekit.cli.core import VERBS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: "Sequence[str] | None" = None) -> int:
    """Runs ``moekit`` with the given arguments (default: ``sys.argv``).

    Returns:
        The exit code: that of the verb; 2 for a user's mistake; 130 after an interrupt; 141 if the reader of the
        output closed the pipe. ``MOEKIT_DEBUG=1`` prints tracebacks.
    """
    args = sys.argv[1:] if argv is None else list(argv)
    if argv is None and (sys.stdout is None or sys.stderr is None):
        _open_closed()
    if argv is None and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a letter that the terminal lacks becomes '?'
    try:
        code = _dispatch(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)  # below the line on which Ctrl-C was typed
        return 130  # 128 + SIGINT, as shells count
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

verbs of plugins: moekit help
"""


def _open_closed() -> None:
    """Opens the null device for a stdout or stderr that the shell has closed (``>&-``) and that Python sets to None."""
    import os

    sys.stdout = sys.stdout or open(os.devnull, "w")
    sys.stderr = sys.stderr or open(os.devnull, "w")


def _dispatch(args: "list[str]") -> int:
    verb = args[0] if args else "--help"
    if verb in ("-h", "--help"):
        sys.stdout.write(first_page())
        return 0
    if verb in ("-V", "--version"):
        from moekit.cli import version

        return version.run(args[1:])
    import gc

    collects = gc.isenabled()
    gc.disable()  # start-up makes no garbage, and collecting takes a tenth of its time
    try:
        from moekit.cli import verbs

        return verbs.run(verb, args[1:])
    finally:
        if collects:
            gc.enable()
