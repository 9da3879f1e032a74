"""Reading of a truth by its name: a table, a list, a COCO file, a folder or reviews."""

from __future__ import annotations

from pathlib import Path

from prompt_iml.engine.errors import EmptySource, FetchError, MissingInput, NotFound, UsageError
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.truth.folders import folder_labels
from prompt_iml.pipeline.truth.labels import Faults, Label
from prompt_iml.pipeline.truth.reviews import review_labels, reviews_folder
from prompt_iml.pipeline.truth.tables import table_labels


def read_labels(name: str | Path, limit: int | None = None) -> list[Label]:
    """Read a truth, but not the images and masks that it names.

    Args:
        name: path or URI of a table, a JSON list, a COCO file or a folder, or of a scan's output
            with reviews; see `tables`, `folders` and `reviews` in `prompt_iml.pipeline.truth`.
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
        if storage.look_up(uri) is not None:
            labels = table_labels(uri, shown, faults)
        elif reviews := reviews_folder(uri):
            labels = review_labels(reviews)
        else:
            labels = folder_labels(uri, faults)
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
