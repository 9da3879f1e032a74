"""`prompt-iml completion SHELL`: a script that completes commands, flags and their values.

The script is text made from the classes of the settings, so a key costs no start of Python. Where
it knows nothing, shells complete names of files.
"""

from __future__ import annotations

from argparse import SUPPRESS
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args, get_origin

from prompt_iml.pipeline.cli import commands
from prompt_iml.pipeline.parser import settings_source
from prompt_iml.pipeline.settings import Command, CompletionSettings

BASH = """\
_prompt_iml() {
    local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" known=
    if [[ $word == "=" ]]; then
        word=
    elif [[ $before == "=" ]]; then
        before="${COMP_WORDS[COMP_CWORD-2]}"
    fi
    if [[ $COMP_CWORD -eq 1 ]]; then
        known="@COMMANDS@"
    else
        case "${COMP_WORDS[1]} $word" in
@FLAGS@
            *)
                case "${COMP_WORDS[1]} $before" in
@VALUES@
                esac ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$known" -- "$word"))
}
complete -o default -F _prompt_iml prompt-iml
"""
ZSH = """\
(( $+functions[compdef] )) || { autoload -U +X compinit && compinit; }
autoload -U +X bashcompinit && bashcompinit
"""


class Argument(NamedTuple):
    """Flag, or positional argument, of a command.

    Attributes:
        flags: names of the flag, each with its dashes; empty for a positional argument.
        values: values that it may have; empty where it takes any, or none.
        takes_value: whether a value follows.
        about: help text.
    """

    flags: list[str]
    values: list[str]
    takes_value: bool
    about: str


def print_script(settings: CompletionSettings) -> None:
    """Print the script of a shell."""
    found = {name: arguments(name, entry.settings) for name, entry in commands().items()}
    if settings.shell == "fish":
        print("\n".join(fish(found)))
    else:
        print((ZSH if settings.shell == "zsh" else "") + bash(found), end="")


def arguments(name: str, settings: type[Command]) -> list[Argument]:
    """Return the flags and the positional arguments of a command, as its parser knows them."""
    fields = settings.model_fields
    return [
        Argument(
            flags=list(action.option_strings),
            values=choices(fields[action.dest].annotation) if action.dest in fields else [],
            takes_value=action.nargs != 0,
            about=action.help or "",
        )
        for action in settings_source(name, settings).root_parser._actions
        if action.help != SUPPRESS
    ]


def choices(annotation: Any) -> list[str]:
    """Return the values of a `Literal`, or of one within, as in `list[Literal[...]]`."""
    inner = get_args(annotation)
    if get_origin(annotation) is Literal:
        return list(inner)
    return [value for each in inner for value in choices(each)]


def bash(found: dict[str, list[Argument]]) -> str:
    """Return the script of bash, 3.2 or later, which zsh reads too."""
    flags, values = [], []
    for name, known in found.items():
        named = " ".join(flag for argument in known for flag in argument.flags)
        flags.append(f'            "{name} -"*) known="{named}" ;;')
        for argument in known:
            if argument.values:
                places = "|".join(f'"{name} {flag}"' for flag in argument.flags or [name])
                values.append(f'{16 * " "}{places}) known="{" ".join(argument.values)}" ;;')
    script = BASH.replace("@COMMANDS@", " ".join([*found, "--help", "--version"]))
    return script.replace("@FLAGS@", "\n".join(flags)).replace("@VALUES@", "\n".join(values))


def fish(found: dict[str, list[Argument]]) -> Iterator[str]:
    """Yield the lines of the script of fish."""
    begin = "complete -c prompt-iml -n"
    for name, entry in commands().items():
        about = _quoted(entry.settings.__doc__ or "")
        yield f"{begin} __fish_use_subcommand -f -a {name} -d {about}"
    for name, known in found.items():
        for argument in known:
            longs = "".join(f" -l {flag[2:]}" for flag in argument.flags if flag.startswith("--"))
            value = f" -a '{' '.join(argument.values)}'" if argument.values else ""
            if longs or value:
                kind = "" if not argument.takes_value else " -x" if value else " -r"
                kind = kind if longs else " -f"
                about = _quoted(argument.about)
                yield f"{begin} '__fish_seen_subcommand_from {name}'{longs}{kind}{value} -d {about}"


def _quoted(text: str) -> str:
    """Return the first sentence of a text in quotes of fish."""
    first = " ".join(text.split()).partition(". ")[0].removesuffix(".")
    return "'" + first.replace("\\", "\\\\").replace("'", "\\'") + "'"
