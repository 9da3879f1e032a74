"""`prompt-iml export`: take the findings of a run into other tools."""

from __future__ import annotations

from prompt_iml.engine.errors import FetchError, MissingInput
from prompt_iml.pipeline.export.coco import write_coco
from prompt_iml.pipeline.export.files import written
from prompt_iml.pipeline.export.pictures import write_masks, write_overlays
from prompt_iml.pipeline.export.rows import Selection, write_rows
from prompt_iml.pipeline.run.folder import Json, Run
from prompt_iml.pipeline.run.table import only_run
from prompt_iml.pipeline.settings import ExportSettings
from prompt_iml.pipeline.storage import storage

NAMES = {
    "coco": "coco.json", "masks": "masks", "overlays": "overlays", "csv": "results.csv",
    "jsonl": "results.jsonl",
}  # fmt: skip

ANNOTATIONS = "/annotations"  # the folder of COCO files in the layout of COCO's own data sets


def export(settings: ExportSettings) -> Json:
    """Write the selected findings.

    Returns:
        `run_id`, `path` (the file or folder) and what was counted: `rows`, or `images`, `masks` and
        `missing`.

    Raises:
        MissingInput: the output or the run has no results.
        UsageError: several runs exist and none is named, or the file cannot be written.
    """
    output = storage.canonical(settings.output)
    path = storage.canonical(settings.path or f"{output}/exports/{NAMES[settings.to]}")
    try:
        selection = Selection.of(Run(output, only_run(output, settings.run_id)), settings.label)
        counts = _write(selection, settings, path)
    except FetchError as error:
        raise MissingInput(f"no results to export: {error}") from error
    return {"run_id": selection.run.run_id, "path": path, **counts}


def _write(selection: Selection, settings: ExportSettings, path: str) -> Json:
    if settings.to == "masks":
        return write_masks(selection, path)
    if settings.to == "overlays":
        return write_overlays(selection, path)
    with written(path) as file:
        if settings.to == "coco":
            return write_coco(selection, file, _images_folder(path) if settings.images else None)
        return {"rows": write_rows(selection, file, settings.to)}


def _images_folder(path: str) -> str:
    """Return the folder (its URI) in which tools look for the images of a COCO file."""
    folder = path.rpartition("/")[0]
    return f"{folder.removesuffix(ANNOTATIONS)}/images"
