"""The one interface between a scan and a runtime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from prompt_iml.engine.model.prompts import PromptSet


@dataclass(frozen=True, slots=True)
class Batch:
    """Network input.

    Attributes:
        image: (N, H, W, 3) uint8 RGB; H and W as the model's view allows.
        qtable: (N, 64) float32, JPEG luma quantisation tables in natural order; ones where
            the file has none.
    """

    image: NDArray[np.uint8]
    qtable: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Detection:
    """Network output, before calibration and in the frame of the batch.

    Attributes:
        mask_logits: (N, H/4, W/4) float32; above 0 means manipulated.
        score_logit: (N,) float32, for the image as a whole.
    """

    mask_logits: NDArray[np.float32]
    score_logit: NDArray[np.float32]


class Engine(Protocol):
    """A runtime with a model loaded. Not thread-safe: one engine, one thread."""

    @property
    def name(self) -> str:
        """Runtime, precision and device, as rows name it: `openvino/f32/cpu`."""
        ...

    @property
    def batch(self) -> int:
        """Images that it is best given at once."""
        ...

    @property
    def depth(self) -> int:
        """Batches that may be under way at once."""
        ...

    def load_prompts(self, prompts: PromptSet) -> None:
        """Use another prompt set from the next batch on; no export, no engine build."""
        ...

    def run(self, batch: Batch) -> Detection:
        """Detect. Raises `InferError` when the runtime fails."""
        ...

    def submit(self, batch: Batch) -> Any:
        """Begin a batch: a ticket for `collect`. Raises as `run`."""
        ...

    def collect(self, ticket: Any) -> Detection:
        """Wait for a batch. Raises as `run`."""
        ...


class Sequential:
    """What an engine adds to `run` when it does one image at a time, in the caller's thread."""

    batch = depth = 1

    def run(self, batch: Batch) -> Detection:
        """See `Engine`."""
        raise NotImplementedError

    def submit(self, batch: Batch) -> Detection:
        """Runs it."""
        return self.run(batch)

    def collect(self, ticket: Detection) -> Detection:
        """It has been run."""
        return ticket
