"""Command line: `prompt-iml COMMAND ...`.

Exit codes: 0 done, 1 crashed, 2 bad usage or configuration (one line that names the fix), 3 done
but with more failures than `--max-failure-rate`, problems found by `verify`, nothing stored by
`build`, or nothing promoted by `retrain`, 130 interrupted by SIGINT, SIGTERM or SIGHUP. The last
line on stdout is a JSON summary, but for `runs`, `top`, `completion` and a scan without an output,
whose lines are their results; everything else goes to stderr.

Importing this module and parsing a command import neither NumPy nor Ray: a wrong command is
refused at once.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from io import TextIOWrapper
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsError

from prompt_iml.engine.errors import (
    BadCredentials,
    FetchError,
    MissingDependency,
    PromptImlError,
    UsageError,
)
from prompt_iml.pipeline.logs import log, printable, until_closed
from prompt_iml.pipeline.parser import POSITIONAL, did_you_mean, settings_source
from prompt_iml.pipeline.settings import (
    SETTINGS_FILE,
    BuildSettings,
    CalibrateSettings,
    Command,
    CompactSettings,
    CompletionSettings,
    DemoSettings,
    DoctorSettings,
    EvaluateSettings,
    ExportSettings,
    ImportSettings,
    PlanSettings,
    ReportSettings,
    ReviewSettings,
    RunsSettings,
    ScanSettings,
    TopSettings,
    VerifySettings,
)

DONE, CRASHED, USAGE, FAILURES, INTERRUPTED = 0, 1, 2, 3, 130

Outcome = tuple[dict[str, Any] | None, int]
"""The JSON summary of a command, None where it has printed its results, and its exit code."""


def _done(summary: dict[str, Any], _: object) -> Outcome:
    return summary, DONE


def _printed(*_: object) -> Outcome:
    return None, DONE


def _scanned(summary: dict[str, Any], settings: ScanSettings | DemoSettings) -> Outcome:
    """Return the summary, unless verdicts were printed, and `FAILURES` where too many images
    failed, images were lost with their shard, or no image was looked at but for those of an earlier
    run."""
    known = summary["codes"].get("already_scanned", 0)
    nothing = summary["ok"] + summary["failed"] + known == 0
    failed = summary["failure_rate"] > settings.max_failure_rate
    code = FAILURES if failed or summary["incomplete"] or nothing else DONE
    return summary if settings.output else None, code


class Entry(NamedTuple):
    """Command of the command line.

    Attributes:
        settings: class of its settings.
        run: "module:function", imported after the settings are checked.
        outcome: function of the result of `run` and the settings; returns summary and exit code.
        needs: optional packages that it requires.
        extra: extra of this distribution that installs them.
        resumes: whether the same command continues after an interruption.
    """

    settings: type[Command]
    run: str
    outcome: Callable[[Any, Any], Outcome] = _done
    needs: tuple[str, ...] = ()
    extra: str | None = None
    resumes: bool = False


GROUP = "prompt_iml.commands"  # entry points by which other packages add their commands

COMMANDS = {
    "scan": Entry(ScanSettings, "prompt_iml.pipeline.detect.verdict:scan", _scanned, resumes=True),
    "demo": Entry(DemoSettings, "prompt_iml.pipeline.demo.demo:demo", _scanned, resumes=True),
    "report": Entry(ReportSettings, "prompt_iml.pipeline.report.report:report"),
    "review": Entry(
        ReviewSettings,
        "prompt_iml.pipeline.review.review:review",
        needs=("fastapi", "uvicorn"),
        extra="review",
    ),
    "runs": Entry(RunsSettings, "prompt_iml.pipeline.report.runs:print_runs", _printed),
    "top": Entry(TopSettings, "prompt_iml.pipeline.report.top:print_top", _printed),
    "export": Entry(ExportSettings, "prompt_iml.pipeline.export.export:export"),
    "compact": Entry(CompactSettings, "prompt_iml.pipeline.run.compact:compact"),
    "verify": Entry(
        VerifySettings,
        "prompt_iml.pipeline.run.verify:verify",
        lambda summary, _: (summary, FAILURES if summary["problems"] else DONE),
    ),
    "import": Entry(ImportSettings, "prompt_iml.pipeline.export.labels:import_labels"),
    "evaluate": Entry(EvaluateSettings, "prompt_iml.pipeline.evaluation.evaluate:evaluate"),
    "calibrate": Entry(CalibrateSettings, "prompt_iml.pipeline.evaluation.calibrate:calibrate"),
    "plan": Entry(PlanSettings, "prompt_iml.pipeline.scan.estimate:estimate"),
    "build": Entry(
        BuildSettings,
        "prompt_iml.pipeline.machine.build:build",
        lambda summary, _: (summary, DONE if summary["stored"] else FAILURES),
    ),
    "doctor": Entry(DoctorSettings, "prompt_iml.pipeline.machine.doctor:doctor"),
    "completion": Entry(
        CompletionSettings, "prompt_iml.pipeline.completion:print_script", _printed
    ),
}


def commands() -> dict[str, Entry]:
    """Return every command by name: those of `COMMANDS`, then those of the entry points, sorted."""
    from importlib.metadata import entry_points

    points = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    return COMMANDS | {point.name: point.load() for point in points}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    # Before NumPy is imported: its threads wait busily, which on small matrices costs more than it
    # saves. Ray does the same in its processes.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, TextIOWrapper):  # not all of them have every name's characters
        sys.stdout.reconfigure(errors="backslashreplace")
    if argv in (["--version"], ["-V"]):
        from importlib.metadata import version

        print(version("prompt-iml"))
        return DONE
    name = argv[0] if argv else ""
    entry = COMMANDS.get(name) or commands().get(name)
    if entry is None:
        return _no_command(argv)
    resumes = entry.resumes
    try:
        with _interrupted_by_signals():
            settings = parse(name, entry.settings, argv[1:])
            resumes &= bool(getattr(settings, "output", None))
            return run(entry, settings)
    except (ValidationError, SettingsError) as error:
        problem = _first_problem(entry.settings, error)
        return _refuse(f"{name}: {problem}; see prompt-iml {name} --help")
    except UsageError as error:
        return _refuse(f"{name}: {error}")
    except FetchError as error:
        from prompt_iml.pipeline.storage.storage import CREDENTIALS_FIX

        fix = f"; {CREDENTIALS_FIX}" if isinstance(error, BadCredentials) else ""
        return _refuse(f"{name}: cannot read {error}{fix}")
    except PromptImlError as error:
        return _refuse(f"{name}: {error}", CRASHED)
    except KeyboardInterrupt:
        again = "resumes" if resumes else "begins again"
        with suppress(OSError):  # the terminal may be gone
            print(f"interrupted: the same command {again}", file=sys.stderr)
        if arguments is None:
            _end(INTERRUPTED)
        return INTERRUPTED


def _end(code: int) -> None:
    """End the process at once: Python would wait for threads that a store keeps waiting."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """Raise `KeyboardInterrupt` also on SIGTERM, with which systems end a job, and on SIGHUP, with
    which a terminal that is closed does, unless that is ignored, as under `nohup`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ending = (signal.SIGTERM, signal.SIGHUP) if hasattr(signal, "SIGHUP") else (signal.SIGTERM,)
    heard = [each for each in ending if signal.getsignal(each) is not signal.SIG_IGN]
    before = {each: signal.signal(each, signal.default_int_handler) for each in heard}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def parse(name: str, settings: type[Command], arguments: list[str]) -> Command:
    """Return the settings that the flags, the environment and the settings file give.

    Raises:
        UsageError: flags that contradict each other, or one whose name has changed.
        ValidationError, SettingsError: a flag is missing, unknown, or has an impossible value.
    """
    flags = {argument.partition("=")[0] for argument in arguments}
    settings.refuse_earlier(flags, lambda field: f"--{field.replace('_', '-')}")
    settings.refuse_earlier(flags, lambda field: f"--no-{field.replace('_', '-')}")
    source = settings_source(name, settings)
    return CliApp.run(settings, cli_args=arguments, cli_settings_source=source)


def run(entry: Entry, settings: Command) -> int:
    """Run a command, print its summary and return the exit code.

    Raises:
        UsageError: an input is wrong, or a package is missing.
    """
    if missing := [package for package in entry.needs if find_spec(package) is None]:
        raise _missing(entry, f"{missing[0]} is not installed")
    if given := settings.from_file():
        log(f"note: {SETTINGS_FILE} gives {', '.join(sorted(given))}")
    settings.check()
    module, _, function = entry.run.partition(":")
    try:
        command = getattr(import_module(module), function)
    except ModuleNotFoundError as error:
        raise _missing(entry, str(error)) from error
    summary, code = entry.outcome(command(settings), settings)
    if summary is not None:
        with until_closed():
            print(json.dumps(summary))
    return code


def _missing(entry: Entry, reason: str) -> MissingDependency:
    name = f"'prompt-iml[{entry.extra}]'" if entry.extra else "prompt-iml"
    return MissingDependency(f"{reason}: pip install {name}")


def _no_command(argv: list[str]) -> int:
    known = commands()
    if argv and argv[0] not in ("-h", "--help"):
        hint = did_you_mean(argv[0], known)
        return _refuse(f"has no command {argv[0]!r}{hint}: use one of {', '.join(known)}")
    print("usage: prompt-iml COMMAND ...   (COMMAND --help lists its flags)")
    for name, entry in known.items():
        print(f"  {name:10} {entry.settings.__doc__}")
    return DONE if argv else USAGE


def _first_problem(settings: type[Command], error: ValidationError | SettingsError) -> str:
    if isinstance(error, SettingsError):
        return str(error).splitlines()[0]
    first = error.errors()[0]
    name = str(first["loc"][0])
    field = settings.model_fields.get(name)
    positional = field is not None and POSITIONAL in field.metadata
    flag = name.upper() if positional else f"--{name.replace('_', '-')}"
    match first["type"]:
        case "missing":
            return f"{flag} is missing"
        case "extra_forbidden":
            flags = [f"--{field.replace('_', '-')}" for field in settings.model_fields]
            return f"{flag} is not a setting of this command{did_you_mean(flag, flags)}"
        case "string_pattern_mismatch":
            description = str(settings.model_fields[name].description).rstrip(".")
            return f"{flag} cannot be {first['input']!r}: {description}"
        case "literal_error":
            choices = re.findall(r"'([^']*)'", first["ctx"]["expected"])
            hint = did_you_mean(str(first["input"]), choices)
            return f"{flag}: {first['msg'].lower()}{hint}"
    return f"{flag}: {first['msg'].lower()}"


def _refuse(line: str, code: int = USAGE) -> int:
    print(f"prompt-iml {printable(line)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
