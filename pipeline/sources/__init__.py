"""Sources: the inputs of a scan, as units, and the samples in a unit.

`list_units` turns paths and URIs of folders, shards, Parquet files and lists into `Unit`s, on the
driver. `read_unit` reads the `Sample`s of a unit, in a scan actor. Every listed image becomes one
sample, with its exact bytes or an error.
"""

from __future__ import annotations

from prompt_iml.pipeline.sources.names import Format
from prompt_iml.pipeline.sources.packing import list_units
from prompt_iml.pipeline.sources.reading import read_unit
from prompt_iml.pipeline.storage.storage import display_name

__all__ = ["Format", "display_name", "list_units", "read_unit"]
