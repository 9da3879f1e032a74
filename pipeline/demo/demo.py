"""`prompt-iml demo`: the whole pipeline on real photographs whose truth is known.

generate -> shards -> scan -> report, contact sheet, comparison with the truth
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image as PilImage

from prompt_iml.engine.model.folder import load_model
from prompt_iml.pipeline.demo.photographs import DemoImage, generate_set, write_shards
from prompt_iml.pipeline.detect.lines import counts_line, name_of
from prompt_iml.pipeline.evaluation.comparison import compare, read_rows, read_truth, table
from prompt_iml.pipeline.images.decode import DecodeLimits, decode
from prompt_iml.pipeline.logs import log
from prompt_iml.pipeline.report.pictures import contact_sheet
from prompt_iml.pipeline.report.report import write_report
from prompt_iml.pipeline.run.folder import Json, Run
from prompt_iml.pipeline.run.masks import decode_mask
from prompt_iml.pipeline.run.table import open_results
from prompt_iml.pipeline.scan.scan import scan
from prompt_iml.pipeline.settings import DemoSettings, Pool, ScanSettings

SHOWN = 8


def demo(settings: DemoSettings) -> Json:
    """Generate, scan, report and compare, all below `settings.output`.

    Returns:
        The scan's summary with `report` and `picture` (paths) and `comparison` (numbers).
    """
    folder = Path(settings.output).absolute()
    images = list(generate_set(settings.seed))
    truth_file = write_shards(images, folder)
    summary = scan(
        ScanSettings(
            inputs=[str(folder / "shards")],
            output=str(folder),
            run_id=_run_id(truth_file, settings.model),
            model=settings.model,
            **settings.model_dump(include=set(Pool.model_fields)),
        )
    )
    run = Run(summary["output"], summary["run_id"])
    truth = read_truth(truth_file)
    rows = read_rows(open_results(run), truth)
    comparison = compare(rows, truth)
    picture = _write_sheet(folder / "found.png", images, rows)
    report = write_report(summary["output"], run_id=run.run_id)
    log(f"\nfound against truth, {summary['model']}, as measured:\n\n{table(comparison)}\n")
    log(f"{counts_line(summary)}\n\nreport   {report}\npicture  {picture}")
    log(f"table    {folder}/results/*.parquet\n\nnext: prompt-iml review {name_of(str(folder))}")
    return {
        **summary,
        "report": report,
        "picture": str(picture),
        "comparison": asdict(comparison),
    }


def _run_id(truth_file: Path, model: str) -> str:
    """Derive the run's id from images and weights, so that only the same demo resumes."""
    named = truth_file.read_bytes() + load_model(model).sha256.encode()
    return "demo-" + hashlib.sha256(named).hexdigest()[:12]


def _write_sheet(path: Path, images: list[DemoImage], rows: Sequence[Mapping[str, Any]]) -> Path:
    """Show the first manipulated images beside their truth and what was found."""
    by_sha256 = {row["sha256"]: row for row in rows}
    examples = []
    for image in [image for image in images if image.mask is not None][:SHOWN]:
        row = by_sha256[hashlib.sha256(image.data).hexdigest()]
        found = decode_mask(row["mask_rle"], row["mask_height"], row["mask_width"])
        pixels = decode(image.data, DecodeLimits()).image.pixels
        caption = f"{image.kind}, score {row['score']:.2f}"
        examples.append((caption, pixels, image.mask, found))
    PilImage.fromarray(contact_sheet(examples)).save(path)
    return path
