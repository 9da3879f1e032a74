"""Pictures that Schemathesis sends in place of random bytes: small ones, whole and damaged."""

from __future__ import annotations

import io

import schemathesis
from hypothesis import strategies
from PIL import Image


def picture(kind: str, colour: str) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(sink, kind)
    return sink.getvalue()


WHOLE = [picture(kind, colour) for kind in ("PNG", "JPEG") for colour in ("red", "gray")]
PICTURES = strategies.sampled_from([*WHOLE, WHOLE[-1][:300], WHOLE[0][:-20]])
for media_type in ("application/octet-stream", "image/*"):
    schemathesis.openapi.media_type(media_type, PICTURES)
schemathesis.openapi.format("binary", PICTURES)
