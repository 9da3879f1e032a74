"""Requests and answers of the endpoint as OpenAPI describes them; rows as the results table has
them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, get_args

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, create_model

from prompt_iml.engine.model.policy import Label
from prompt_iml.pipeline.run.folder import Json
from prompt_iml.pipeline.run.schema import SCHEMA
from prompt_iml.pipeline.scan.rows import known_codes

# Columns that name an input or a run; a posted image has neither.
OMITTED_COLUMNS = ("image_id", "uri", "member", "content_id", "run_id", "heatmap_png")

CODES = known_codes()
CHOICES: Json = {
    "status": Literal[tuple(sorted({*CODES.values()}))],
    "error_stage": Literal["fetch", "decode", "infer"],
    "error_code": Literal[tuple(sorted(code for code in CODES if code))],
    "label": Literal[get_args(Label)],
}
KINDS = (
    (pa.types.is_boolean, bool),
    (pa.types.is_integer, int),
    (pa.types.is_floating, float),
    (pa.types.is_timestamp, datetime),
)


class Strict(BaseModel):
    """Object with the fields that are named, and no others."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


def _json(kind: pa.DataType, name: str) -> Any:
    """Return the type in JSON of an Arrow type; a struct is a model with a name."""
    if pa.types.is_list(kind):
        return list[_json(kind.value_type, name.removesuffix("s"))]  # type: ignore[misc]
    if pa.types.is_struct(kind):
        fields: Json = {field.name: (_json(field.type, field.name), ...) for field in kind}
        return create_model(name.title(), __base__=Strict, **fields)
    for is_kind, python in KINDS:
        if is_kind(kind):
            return python
    return str


def _columns() -> Json:
    """Return type and default of each column of an answer, by name."""
    columns: Json = {}
    for field in SCHEMA:
        if field.name not in OMITTED_COLUMNS:
            kind = CHOICES.get(field.name) or _json(field.type, field.name)
            columns[field.name] = (kind | None if field.nullable else kind, ...)
    return columns


class _Beside(Strict):
    """Fields of a picture's answer that are no columns of its row."""

    name: str | None = Field(None, description="File name of the picture, where several are sent.")
    overlay_png: Annotated[str, Field(json_schema_extra={"contentEncoding": "base64"})] | None = (
        Field(None, description="With `overlay=true`: the picture with its mask drawn over it.")
    )


Row = create_model(
    "Row",
    __base__=_Beside,
    __doc__="Columns of the results table, docs/table.md, that a scan would write.",
    **_columns(),
)


class Rows(Strict):
    """Answer to several pictures, in their order; each has a status of its own."""

    images: list[Row]  # type: ignore[valid-type]


class Error(Strict):
    """Reason for which a request was not answered."""

    error_message: str
    status: Literal["failed"] | None = None
    error_stage: str | None = None
    error_code: str | None = None


class UrlRequest(Strict):
    """Request to fetch a picture from a host that the endpoint allows."""

    url: str = Field(min_length=9, max_length=2000, examples=["https://images.example/photo.jpg"])
    """Address of the picture, https:// only."""


EXAMPLE: Json = dict.fromkeys(_columns()) | {
    "sha256": "a2c72e94eba0bc615a34404b4a68450aef81275b23fef9d98ad64a13d2c5b5b8",
    "size_bytes": 13980,
    "media_type": "image/jpeg",
    "width": 403,
    "height": 266,
    "frame_count": 1,
    "jpeg_quality": 70,
    "status": "ok",
    "score": 0.9966004,
    "score_raw": 1.2244251,
    "label": "manipulated",
    "threshold": 0.92495,
    "policy": "10-fpr-0.01",
    "manipulated_fraction": 0.0356816,
    "regions": [
        {"x": 74, "y": 99, "width": 81, "height": 70, "area": 3825, "mean_score": 0.6166,
         "max_score": 0.93335}
    ],
    "mask_rle": (
        "nZc0147h79L5J5I4O01O01O101N2O0O1O01O0LlHSOT7m042N1jHPOR7T1O2O1N101N100O1"
        "0O11O1TIeNg6a1N1O1N10O100001O5K3M1OO2O0O11O2N3M2OO0O1O1O2O01O01O001O0O2O"
        "001O0O2O1O001O001N3M2O1N3M2O1O4K4M4K7F7J>CmXP2"
    ),
    "mask_height": 266,
    "mask_width": 403,
    "mask_threshold": 0.2765554,
    "model": "prompt-iml-micro@10",
    "scanned_at": "2026-11-30T13:07:07.305597+00:00",
}  # fmt: skip
