"""``moekit completion``: the script by which a shell completes the words of ``moekit``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from moekit.errors import MoekitError

EXAMPLES = """\
  source <(moekit completion bash)                                      bash 4 or newer: in ~/.bashrc
  source <(moekit completion zsh)                                       zsh: in ~/.zshrc, after compinit
  moekit completion fish > ~/.config/fish/completions/moekit.fish       fish
  moekit train deep<TAB> model.moe.router.<TAB>                         then: verbs, recipes, components, keys, values

The shell asks moekit at every TAB, so that new plugins and recipes of yours are known at once.
"""

BASH = """\
_moekit() {
    local IFS=$'\\n' line=${COMP_LINE:0:COMP_POINT} word
    word=${line##*[[:space:]]}
    COMPREPLY=($(moekit completion words "$line" 2>/dev/null))
    [[ ${COMPREPLY[0]} == *[=.] ]] && compopt -o nospace
    [[ $word == *=* ]] && COMPREPLY=("${COMPREPLY[@]#"${word%%=*}="}")
}
complete -o default -F _moekit moekit
"""

ZSH = """\
#compdef moekit
_moekit() {
    local -a found open closed
    found=(${(f)"$(moekit completion words "${(j: :)words[1,CURRENT]}" 2>/dev/null)"})
    if (( ! $#found )); then
        _files
        return
    fi
    open=(${(M)found:#*[=.]})
    closed=(${found:#*[=.]})
    (( ! $#open )) || compadd -S '' -- $open
    (( ! $#closed )) || compadd -- $closed
}
compdef _moekit moekit
"""

FISH = """\
complete -c moekit -a '(moekit completion words (commandline -cp) 2>/dev/null)'
"""

SCRIPTS: Mapping[str, str] = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("shell", choices=[*SCRIPTS, "words"], help="a shell; 'words' is what its script calls")
    parser.add_argument("line", nargs="?", metavar="LINE", help="words: the command line up to the cursor")


def run(args: argparse.Namespace) -> int:
    """Prints a script; or, for one, the candidates for the last word, a line each.

    Raises:
        MoekitError: a line is given with a shell, or none with ``words``.
    """
    if (args.line is None) == (args.shell == "words"):
        raise MoekitError("completion takes a shell alone, or 'words' with a line\n  more: moekit completion --help")
    if args.shell != "words":
        print(SCRIPTS[args.shell], end="")
        return 0
    from moekit_doctor.completion import candidates

    found = candidates(args.line.split()[1:] + [""] * (args.line[-1:].isspace() or not args.line))
    print("".join(f"{each}\n" for each in found), end="")
    return 0
