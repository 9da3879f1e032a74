"""Find manipulated regions in photographs, over millions of images.

    from prompt_iml import Detector

    finding = Detector().detect("photo.jpg")

The package has three parts, which the checkout keeps at its top level: `engine` (decoded pixels
to a finding), `pipeline` (files to a Parquet table) and `cluster` (training and fleets). The links
beside this file give them their import names, so that every tool finds `prompt_iml.engine` as
plain files: Python, mypy, editors, wheels, and workers that get the checkout as their working
directory.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prompt_iml.engine.errors import ImageError, PromptImlError, UsageError
    from prompt_iml.pipeline.detect.detector import Detector
    from prompt_iml.pipeline.detect.finding import Finding

__all__ = ["Detector", "Finding", "ImageError", "PromptImlError", "UsageError"]

_PLACES = {"Detector": "pipeline.detect.detector", "Finding": "pipeline.detect.finding"}


def __getattr__(name: str) -> object:
    """Import a name of the library when it is first used: the command line needs none."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"prompt_iml.{_PLACES.get(name, 'engine.errors')}"), name)
