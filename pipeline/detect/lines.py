"""Lines for people: a verdict, the counts of a scan, and how a scan ends."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prompt_iml.engine.model.policy import Label
from prompt_iml.pipeline.logs import one_line, printable, until_closed
from prompt_iml.pipeline.storage import storage

LABELS: tuple[Label, ...] = ("manipulated", "uncertain", "authentic")

Facts = Mapping[str, Any]


def print_lines(lines: Iterable[str]) -> None:
    """Print lines on stdout, as many as its reader wants."""
    with until_closed():
        for line in lines:
            print(line, flush=True)


def verdict_line(row: Facts) -> str:
    """Return a line such as `manipulated  0.998  2 regions   photo.jpg` for a row.

    Args:
        row: columns by name; `regions` may be their number.
    """
    name = name_of(row["uri"], row.get("member"))
    if row["status"] != "ok":
        reason = one_line(printable(row["error_message"]))
        return f"{row['status']:11}  {row['error_code']:17}  {name}: {reason}"
    count = row["regions"] if isinstance(row["regions"], int) else len(row["regions"])
    regions = f"{count} region{'s' * (count != 1)}" if count else ""
    return f"{row['label']:11}  {row['score']:.3f}  {regions:10}  {name}"


def name_of(uri: str, member: str | None = None) -> str:
    """Return a short name that is safe to print: a path relative to the working folder."""
    name = uri
    if storage.is_local(uri):
        path = storage.local_path(uri)
        name = str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
    return printable(name if member is None else f"{name}: {member}", "")


def counts_line(summary: Facts) -> str:
    """Return a line such as `9 images: 2 manipulated, 1 uncertain, 5 authentic, 1 failed`."""
    labels = summary["labels"]  # none where an earlier version completed the run
    counts = {name: labels.get(name, 0) for name in LABELS} if labels else {"ok": summary["ok"]}
    counts |= {status: summary[status] for status in ("failed", "skipped") if summary[status]}
    listed = summary["listed"]
    parts = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    return f"{listed:,} image{'s' * (listed != 1)}: {parts}"


def ending(summary: Facts) -> Iterator[str]:
    """Yield the last lines of a scan: counts, the highest scores, and what to do next."""
    yield counts_line(summary)
    for found in summary["findings"]:
        yield f"  {verdict_line({'status': 'ok', **found})}"
    output, run_id = shlex.quote(name_of(summary["output"])), summary["run_id"]
    yield f"next: prompt-iml report {output} --run-id {run_id}"
    yield f"      prompt-iml review {output} --run-id {run_id}"
    if summary["failed"]:
        yield f"      prompt-iml scan --output {output} --retry-failed {run_id}"
