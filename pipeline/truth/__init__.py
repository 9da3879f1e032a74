"""Truth: images of which somebody knows whether and where they were manipulated.

A name enters: of a table (CSV, TSV, JSON lines, Parquet), a JSON list, a COCO file, a folder or the
reviews of a scan, local or on S3. `read_labels` returns its `Label`s, `read_images` the bytes of
their images, and `truth_of` what is known of each, with its mask in the frame of the stored pixels.
"""

from prompt_iml.pipeline.truth.images import check_images, read_images, truth_of
from prompt_iml.pipeline.truth.labels import Faults, Label, Truth
from prompt_iml.pipeline.truth.masks import Mask, Rle
from prompt_iml.pipeline.truth.reading import read_labels

__all__ = [
    "Faults",
    "Label",
    "Mask",
    "Rle",
    "Truth",
    "check_images",
    "read_images",
    "read_labels",
    "truth_of",
]
