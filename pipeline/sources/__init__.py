"""Sources: the inputs of a scan, as units, and the samples in a unit.

In come paths and URIs of folders, shards, Parquet files and lists; out go `Unit`s (`list_units`,
on the driver) and, from each unit, exact bytes as `Sample`s (`read_unit`, in a scan actor). Every
image listed becomes one sample: with its bytes, or with the reason why there are none.
"""

from __future__ import annotations

from prompt_iml.pipeline.sources.names import Format
from prompt_iml.pipeline.sources.packing import list_units
from prompt_iml.pipeline.sources.reading import read_unit
from prompt_iml.pipeline.storage.storage import display_name

__all__ = ["Format", "display_name", "list_units", "read_unit"]
