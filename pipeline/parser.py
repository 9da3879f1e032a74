"""Argument parser of a command: its flags in groups, the required ones first."""

from __future__ import annotations

import json
import re
from argparse import Action, ArgumentParser, HelpFormatter, _ArgumentGroup
from collections.abc import Container, Iterable
from difflib import get_close_matches
from typing import Any, Never, get_args

from pydantic import ByteSize
from pydantic_settings import CliPositionalArg, CliSettingsSource, SettingsError

from prompt_iml.pipeline.settings import Command

REQUIRED, OTHER = "Required", "Other"
GROUPS = {
    "Selection": (
        "format", "image_column", "limit", "sample", "slice", "images_per_unit", "trust_lists",
        "label", "order", "s3_access", "allow_private_addresses",
    ),
    "Model": (
        "model", "engine", "precision", "registry", "prompts", "refresh_prompts", "policy",
        "closer_look", "plugin",
    ),
    "Where it runs": (
        "address", "min_actors", "max_actors", "actor_cpus", "actor_gpus", "wave_units", "decoder",
        "min_replicas", "max_replicas", "workers", "max_workers", "gpus", "host", "port",
        "browser", "working_dir", "wait", "estimate", "rate", "actors", "lease_seconds",
    ),
    "Resume and repair": ("run_id", "retry_failed", "retry_codes", "skip_scanned"),
    "Limits": (
        "max_pixels", "max_object_bytes", "max_bytes", "max_queued", "image_timeout",
        "read_timeout", "actor_memory", "max_failure_rate", "max_images", "url_hosts",
        "require_token",
    ),
    "Training": (
        "train", "start", "semantic_weights", "prompt_set", "labels", "preset", "fusion",
        "add_new_parts", "samples", "batch", "learning_rate", "patience", "seed", "negatives",
        "autoencoders",
    ),
    "Evaluation": (
        "eval_sets", "eval_every", "eval_examples", "margin", "fpr_margin", "max_fpr", "min_gain",
        "predictions", "perturbation", "id", "false_positive_rate", "miss_rate", "flagged_rate",
        "min_side", "min_jpeg_quality",
    ),
    "Output": (
        "output", "json_lines", "overlay", "heatmap", "log", "report", "path", "plot", "side",
        "results", "masks", "images", "reviewer", "target_size", "grace", "force",
    ),
}  # fmt: skip
OF_COMMANDS = {("demo", "seed"): "Selection", ("build", "batch"): "Model"}  # and not of a training
POSITIONAL = get_args(CliPositionalArg[str])[1]  # marks a field
NO_DEFAULT = re.compile(r" \((required|default: (None|False|True|\[\]))\)$")
LIST_DEFAULT = re.compile(r"(?<=\(default: )\[(.+)\](?=\)$)")
SIZE_DEFAULT = re.compile(r"(?<=\(default: )\d+(?=\)$)")
UNKNOWN_FLAG = re.compile(r"unrecognized arguments: .*?(--?[\w-]+)")
LIST_OF = re.compile(r"list\[(\{.*\})\]")  # of words to choose from
METAVARS = {
    "str": "TEXT", "int": "N", "float": "NUMBER", "list[str]": "NAME,...", "ByteSize": "SIZE",
}  # fmt: skip


class Help(HelpFormatter):
    """Page of help, without the names of flags that say no to what is off anyway.

    Args:
        prog: command that it is of.
        off: flags that are off by default.
    """

    def __init__(self, prog: str, off: Container[str]) -> None:
        super().__init__(prog, max_help_position=32)
        self._off = off

    def _format_action_invocation(self, action: Action) -> str:
        if action.dest not in self._off:
            return super()._format_action_invocation(action)
        return ", ".join(name for name in action.option_strings if not name.startswith("--no-"))


class CommandParser(ArgumentParser):
    """Parser that puts each flag into its group and raises where argparse would exit.

    Args:
        name: name of the command.
        settings: class of its settings.
    """

    def __init__(self, name: str, settings: type[Command]) -> None:
        fields = settings.model_fields
        off = {field for field, info in fields.items() if info.default is False}
        super().__init__(
            prog=f"prompt-iml {name}",
            usage=f"prompt-iml {name} [options]",
            description=settings.__doc__,
            formatter_class=lambda prog: Help(prog, off),
            allow_abbrev=False,
            add_help=False,
        )
        groups = {field: title for title, named in GROUPS.items() for field in named}
        groups |= {field: title for (of, field), title in OF_COMMANDS.items() if of == name}
        required = {field: REQUIRED for field, info in fields.items() if info.is_required()}
        self._title_of = groups | required
        titles = (REQUIRED, *GROUPS, OTHER)
        self._groups: dict[str, _ArgumentGroup] = {t: self.add_argument_group(t) for t in titles}
        self._groups[OTHER].add_argument("-h", "--help", action="help", help="Show this page.")

    def add_flag(self, *names: str, **options: Any) -> None:
        """Add a flag that pydantic-settings describes in argparse's terms."""
        if "metavar" in options:
            metavar = LIST_OF.sub(r"\1,...", options["metavar"])
            options["metavar"] = METAVARS.get(metavar, metavar)
        options["help"] = _as_written(NO_DEFAULT.sub("", options["help"]), options.get("metavar"))
        is_flag = names[0].startswith("-")
        title = self._title_of.get(options["dest"], OTHER) if is_flag else REQUIRED
        self._groups[title].add_argument(*names, **options)
        if title == REQUIRED:
            metavar = options["metavar"]
            self._add_usage(f"{names[0]} {metavar}" if is_flag else metavar, options.get("nargs"))

    def _add_usage(self, shown: str, nargs: str | None = None) -> None:
        form = {"?": "[{}]", "*": "{}...", "+": "{}..."}.get(nargs or "", "{}")
        self.usage = f"{str(self.usage).removesuffix('[options]')}{form.format(shown)} [options]"

    def error(self, message: str) -> Never:
        """Raise `SettingsError`; after an unknown flag, with the one that is most like it."""
        unknown = UNKNOWN_FLAG.match(message)
        known = [name for action in self._actions for name in action.option_strings]
        raise SettingsError(message + (did_you_mean(unknown[1], known) if unknown else ""))


def _as_written(text: str, metavar: str | None) -> str:
    """Return a help text whose default is written as its flag takes it: `a,b`, or 256MiB."""
    if metavar == METAVARS["ByteSize"]:
        return SIZE_DEFAULT.sub(lambda number: _size(int(number[0])), text)
    return LIST_DEFAULT.sub(lambda words: words[1].replace("'", "").replace(", ", ","), text)


def _size(number: int) -> str:
    return ByteSize(number).human_readable().replace(".0", "")  # which has one decimal


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return ` (did you mean NAME?)` for the known name that is most like one; empty if none is."""
    near = get_close_matches(given.lower(), list(known), 1)
    return f" (did you mean {near[0]}?)" if near else ""


class FlagSource(CliSettingsSource[Any]):
    """Source of settings that takes each positional argument as it is written.

    The shell has divided them already, and names of files have commas, quotes and brackets. The
    values of other flags are lists in one word: `--label a,b`.
    """

    def _merge_parsed_list(self, parsed_list: list[str], field_name: str) -> str:
        field = self.settings_cls.model_fields.get(field_name)
        if field and POSITIONAL in field.metadata:
            return json.dumps(parsed_list)
        return super()._merge_parsed_list(parsed_list, field_name)


def settings_source(name: str, settings: type[Command]) -> CliSettingsSource[Any]:
    """Return the source of settings that reads a command's flags."""
    parser, add = CommandParser(name, settings), CommandParser.add_flag
    return FlagSource(settings, root_parser=parser, add_argument_method=add)
