"""Files of an evaluation for each image: a row of its result, and the mask that was found."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from os.path import commonpath
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from PIL import Image

from prompt_iml.engine.errors import ImageError, OutputNotWritable
from prompt_iml.pipeline.evaluation.images import Evaluation
from prompt_iml.pipeline.export.files import Write, check_format, row_file, written
from prompt_iml.pipeline.export.names import LONGEST
from prompt_iml.pipeline.logs import log, one_line, printable
from prompt_iml.pipeline.monitoring.progress import LINE_SECONDS, clock
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.truth import Label, Mask

T = TypeVar("T")

BATCH = 256
METRICS = ("score", "score_raw", "masked", "f1", "iou", "best_f1", "pixel_auc")
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("set", "perturbation", "uri", "member", "kind")),
        ("truth", pa.string()),
        ("error_code", pa.string()),
        ("label", pa.string()),
        *((name, pa.float32()) for name in METRICS),
        ("mask_file", pa.string()),
    ]
)


@dataclass(slots=True)
class PerImage:
    """Writer of a row, and of a mask, for each image of an evaluation.

    Attributes:
        write: writes batches of rows; None to write none.
        masks: folder for the masks; None to write none.
    """

    write: Write | None
    masks: Path | None
    _rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, perturbation: str, each: Evaluation, mask_file: str) -> None:
        """Write the evaluation of one image of a set.

        Args:
            name: name of the set.
            perturbation: name of the perturbation.
            each: evaluation of the image.
            mask_file: path of the mask's file below the folder of masks.
        """
        row = _row(each) | {"set": name, "perturbation": perturbation}
        if self.masks and each.mask is not None:
            _save(each.mask, self.masks / mask_file)
            row["mask_file"] = mask_file
        self._rows.append(row)
        if len(self._rows) == BATCH:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait."""
        if self.write and self._rows:
            self.write(pa.RecordBatch.from_pylist(self._rows, SCHEMA))
        self._rows.clear()


def _save(mask: Mask, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
    except OSError as error:
        shown = storage.display_name(str(path))
        raise OutputNotWritable(f"cannot write {shown}: {one_line(error)}") from error


@contextmanager
def per_image(results: str | None, masks: str | None) -> Iterator[PerImage]:
    """Yield the writer of a file of rows and of a folder of masks, where they are named."""
    with ExitStack() as stack:
        write = None
        if results:
            file = stack.enter_context(written(storage.canonical(results)))
            write = stack.enter_context(row_file(file, check_format(results), SCHEMA))
        writer = PerImage(write, Path(masks) if masks else None)
        yield writer
        writer.flush()


def _row(each: Evaluation) -> dict[str, Any]:
    label, outcome = each.label, each.outcome
    named = {"uri": storage.display_name(label.uri), "member": label.member}
    if isinstance(outcome, ImageError):
        return named | {"kind": label.kind, "truth": label.label, "error_code": outcome.code}
    numbers = {name: float(getattr(outcome, name)) for name in METRICS}
    known = {name: None if math.isnan(value) else value for name, value in numbers.items()}
    truth = "manipulated" if outcome.forged else "authentic"
    return named | known | {"kind": outcome.kind, "truth": truth, "label": outcome.label}


def mask_files(labels: Sequence[Label]) -> Callable[[Label], str]:
    """Return a function that gives the path of an image's mask below a folder of masks.

    It is the path of the image below the folder that all images of the set share, and its member's
    name, with `.png`. What is too long for a file's name is cut, and told apart by its checksum.
    """
    root = commonpath([_path(label).rpartition("/")[0] for label in labels])
    return lambda label: _safe(f"{_path(label)[len(root) :]}/{label.member or ''}")


def _path(label: Label) -> str:
    return label.uri.partition("://")[2].lstrip("/")


def _safe(name: str) -> str:
    """Return a name as the path of a PNG file that leads nowhere else, and can be shown."""
    parts = [part for part in storage.display_name(name).split("/") if part not in ("", ".", "..")]
    return "/".join(_cut(printable(part, kept="")) for part in parts) + ".png"


def _cut(part: str) -> str:
    """Return a part of a path, with room for an extension."""
    data = part.encode()
    if len(data) <= LONGEST - len(".png"):
        return part
    checksum = hashlib.sha256(data).hexdigest()[:12]
    return f"{data[:200].decode(errors='ignore')}-{checksum}"


def watched(items: Iterable[T], total: int, name: str) -> Iterator[T]:
    """Yield the items, and log how many are done every few seconds."""
    started = last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= LINE_SECONDS and done < total:
            last = now
            left = (now - started) / done * (total - done)
            log(f"{done:,} of {total:,} images of {name}, {clock(left)} left")
