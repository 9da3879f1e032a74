"""Reading of a truth by its name: a table, a list, a COCO file or a folder."""

from __future__ import annotations

from pathlib import Path

from prompt_iml.engine.errors import EmptySource, FetchError, MissingInput, NotFound, UsageError
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.truth.folders import folder_labels
from prompt_iml.pipeline.truth.labels import Faults, Label
from prompt_iml.pipeline.truth.tables import table_labels


def read_labels(name: str | Path, limit: int | None = None) -> list[Label]:
    """Read a truth, but not the images and masks that it names.

    Args:
        name: path or URI of a table, a JSON list, a COCO file or a folder; see
            `prompt_iml.pipeline.truth.tables` and `prompt_iml.pipeline.truth.folders`.
        limit: at most that many images, spread evenly over the truth.

    Raises:
        BadLabels: rows are wrong; the message names all of them.
        EmptySource: there is no image.
        MissingInput, UsageError: the truth does not exist, or cannot be read.
    """
    shown = storage.display_name(str(name))
    faults = Faults(shown)
    uri = storage.canonical(str(name))
    try:
        is_folder = storage.look_up(uri) is None
        labels = folder_labels(uri, faults) if is_folder else table_labels(uri, shown, faults)
    except NotFound as error:
        raise MissingInput(f"{shown}: no such file or folder") from error
    except FetchError as error:
        raise UsageError(f"cannot read {error}") from error
    faults.check()
    if not labels:
        raise EmptySource(f"{shown} lists no image: add rows below its header")
    if limit is not None and limit < len(labels):
        labels = [labels[i * len(labels) // limit] for i in range(limit)]
    return labels
