"""The command line: `prompt-iml COMMAND ...`.

Exit codes: 0 done, 1 crashed, 2 bad usage or configuration (one line that says the fix), 3 done
with more failures than `--max-failure-rate` or, of `verify`, with problems, of `build`, with
nothing stored, of `retrain`, with nothing promoted, 130 interrupted. The last line on stdout is a
JSON summary; everything else goes to stderr.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points, version
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsError

from prompt_iml.engine.errors import Denied, FetchError, PromptImlError, UsageError
from prompt_iml.pipeline.settings import (
    BuildSettings,
    CalibrateSettings,
    Command,
    CompactSettings,
    DemoSettings,
    DoctorSettings,
    EvaluateSettings,
    PlanSettings,
    Pool,
    ReportSettings,
    ScanSettings,
    VerifySettings,
)

DONE, CRASHED, USAGE, FAILURES, INTERRUPTED = 0, 1, 2, 3, 130
GONE = {"--decoder": "JPEG files are decoded by Pillow"}  # flags of earlier versions


def run_scan(settings: ScanSettings) -> int:
    """`prompt-iml scan`"""
    from prompt_iml.pipeline.scan.scan import scan

    return _scanned(scan(settings), settings)


def run_demo(settings: DemoSettings) -> int:
    """`prompt-iml demo`"""
    from prompt_iml.pipeline.demo.demo import demo

    return _scanned(demo(settings), settings)


def _scanned(summary: dict[str, Any], settings: Pool) -> int:
    print(json.dumps(summary))
    return FAILURES if summary["failure_rate"] > settings.max_failure_rate else DONE


def run_report(settings: ReportSettings) -> int:
    """`prompt-iml report`"""
    from prompt_iml.pipeline.report.report import write_report

    path = write_report(
        settings.output, run_id=settings.run_id, path=settings.path, limit=settings.limit
    )
    print(json.dumps({"report": str(path)}))
    return DONE


def run_compact(settings: CompactSettings) -> int:
    """`prompt-iml compact`"""
    from prompt_iml.pipeline.run.compact import compact

    print(json.dumps(compact(settings)))
    return DONE


def run_verify(settings: VerifySettings) -> int:
    """`prompt-iml verify`"""
    from prompt_iml.pipeline.run.verify import verify

    summary = verify(settings)
    print(json.dumps(summary))
    return FAILURES if summary["problems"] else DONE


def run_evaluate(settings: EvaluateSettings) -> int:
    """`prompt-iml evaluate`"""
    from prompt_iml.pipeline.evaluation.evaluate import evaluate

    print(json.dumps(evaluate(settings)))
    return DONE


def run_calibrate(settings: CalibrateSettings) -> int:
    """`prompt-iml calibrate`"""
    from prompt_iml.pipeline.evaluation.calibrate import calibrate

    print(json.dumps(calibrate(settings)))
    return DONE


def run_plan(settings: PlanSettings) -> int:
    """`prompt-iml plan`"""
    from prompt_iml.pipeline.scan.estimate import estimate

    print(json.dumps(estimate(settings)))
    return DONE


def run_build(settings: BuildSettings) -> int:
    """`prompt-iml build`"""
    from prompt_iml.pipeline.machine.build import build

    summary = build(settings)
    print(json.dumps(summary))
    return DONE if summary["stored"] else FAILURES


def run_doctor(settings: DoctorSettings) -> int:
    """`prompt-iml doctor`"""
    from prompt_iml.pipeline.machine.doctor import doctor

    print(json.dumps(doctor(settings)))
    return DONE


class Entry(NamedTuple):
    """A command: its settings and what runs it."""

    settings: type[Command]
    run: Callable[[Any], int]


GROUP = "prompt_iml.commands"  # entry points: how a room that this one does not know adds its own

COMMANDS = {
    "scan": Entry(ScanSettings, run_scan),
    "demo": Entry(DemoSettings, run_demo),
    "report": Entry(ReportSettings, run_report),
    "compact": Entry(CompactSettings, run_compact),
    "verify": Entry(VerifySettings, run_verify),
    "evaluate": Entry(EvaluateSettings, run_evaluate),
    "calibrate": Entry(CalibrateSettings, run_calibrate),
    "plan": Entry(PlanSettings, run_plan),
    "build": Entry(BuildSettings, run_build),
    "doctor": Entry(DoctorSettings, run_doctor),
}


def commands() -> dict[str, Entry]:
    """Every command by name: this room's, then those of the entry points in `GROUP`, sorted."""
    points = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    return COMMANDS | {point.name: point.load() for point in points}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if argv in (["--version"], ["-V"]):
        print(version("prompt-iml"))
        return DONE
    known = commands()
    if not argv or argv[0] not in known:
        return _no_command(argv, known)
    name, entry = argv[0], known[argv[0]]
    try:
        settings = CliApp.run(entry.settings, cli_args=argv[1:], cli_exit_on_error=False)
        return entry.run(settings)
    except (ValidationError, SettingsError) as error:
        return _refuse(f"{name}: {_first_problem(error)}; see prompt-iml {name} --help")
    except UsageError as error:
        return _refuse(f"{name}: {error}")
    except FetchError as error:
        from prompt_iml.pipeline.storage.storage import CREDENTIALS_FIX

        fix = f"; {CREDENTIALS_FIX}" if isinstance(error, Denied) else ""
        return _refuse(f"{name}: cannot read {error}{fix}")
    except PromptImlError as error:
        return _refuse(f"{name}: {error}", CRASHED)
    except KeyboardInterrupt:
        print("interrupted: the same command resumes", file=sys.stderr)
        return INTERRUPTED


def _no_command(argv: list[str], known: dict[str, Entry]) -> int:
    if argv and argv[0] not in ("-h", "--help"):
        return _refuse(f"has no command {argv[0]!r}: one of {', '.join(known)}")
    print("usage: prompt-iml COMMAND ...   (COMMAND --help tells its flags)")
    for name, entry in known.items():
        print(f"  {name:10} {entry.settings.__doc__}")
    return DONE if argv else USAGE


def _first_problem(error: ValidationError | SettingsError) -> str:
    if isinstance(error, SettingsError):
        problem = str(error).splitlines()[0]
    else:
        first = error.errors()[0]
        field = "--" + "-".join(str(part) for part in first["loc"]).replace("_", "-")
        problem = f"{field}: {first['msg'].lower()}"
    gone = (f"{flag} is gone: {instead}" for flag, instead in GONE.items() if flag in problem)
    return next(gone, problem)


def _refuse(line: str, code: int = USAGE) -> int:
    print(f"prompt-iml {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
