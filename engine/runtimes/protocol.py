"""The interface of a runtime: an `Engine` that turns a `Batch` into a `Detection`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from prompt_iml.engine.model.folder import Model
from prompt_iml.engine.model.prompts import PromptSet, graph_inputs
from prompt_iml.engine.network.config import NetworkConfig

# Arguments of `pip install` for each runtime; the runtime's name is that of its module.
PACKAGES = {
    "openvino": "openvino",
    "onnxruntime": "onnxruntime",
    "torch": "torch",
    "tensorrt": "tensorrt-cu13 'prompt-iml[gpu]' --extra-index-url https://pypi.nvidia.com",
}


@dataclass(frozen=True, slots=True)
class Batch:
    """Network input.

    Attributes:
        image: (N, H, W, 3) uint8 RGB; H and W as the model's view allows.
        qtable: (N, 64) float32, JPEG luma quantisation tables in natural order; ones where
            the file has none.
        histogram: (N, coefficients, bins) float32, as `engine.detection.context.Context` has it.
        matches: (N, features, H/8, W/8) float32, likewise.
    """

    image: NDArray[np.uint8]
    qtable: NDArray[np.float32]
    histogram: NDArray[np.float32]
    matches: NDArray[np.float32]

    def inputs(self, config: NetworkConfig) -> dict[str, NDArray[np.generic]]:
        """Return the inputs that a network takes, by name, without the prompts."""
        return {name: getattr(self, name) for name in config.input_names}


@dataclass(frozen=True, slots=True)
class Detection:
    """Network output, before calibration and in the frame of the batch.

    Attributes:
        mask_logits: (N, H/4, W/4) float32; above 0 means manipulated.
        score_logit: (N,) float32, one for each image as a whole.
    """

    mask_logits: NDArray[np.float32]
    score_logit: NDArray[np.float32]


class Pending(Protocol):
    """A batch that was submitted to an engine."""

    def result(self) -> Detection:
        """Wait for the batch and return its output.

        Raises:
            InferError: the runtime failed.
        """
        ...


@dataclass(frozen=True, slots=True)
class Done:
    """A `Pending` batch of an engine that runs each batch while it is submitted."""

    detection: Detection

    def result(self) -> Detection:
        """Return the output."""
        return self.detection


class Engine(ABC):
    """A runtime with a model loaded. Not thread-safe: one engine, one thread.

    Attributes:
        name: runtime, precision and device, as in result rows: `openvino/f32/cpu`.
        batch: number of images in a batch that suits the runtime best.
        depth: most batches that may be pending at once.
    """

    name: str
    batch: int = 1
    depth: int = 1

    @abstractmethod
    def load_prompts(self, prompts: PromptSet) -> None:
        """Use another prompt set from the next batch on; no export, no engine build."""

    @abstractmethod
    def submit(self, batch: Batch) -> Pending:
        """Start a batch.

        Raises:
            InferError: the runtime failed, or does not take batches of this shape.
        """

    def run(self, batch: Batch) -> Detection:
        """Run one batch and return its output. Raises as `submit` and `Pending.result`."""
        return self.submit(batch).result()


class GraphEngine(Engine):
    """An engine of the exported graph, which takes prompts as inputs.

    Args:
        model: whose graph the engine has loaded.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self.load_prompts(model.prompts)

    def load_prompts(self, prompts: PromptSet) -> None:
        """Use another prompt set from the next batch on."""
        self._prompts = graph_inputs(prompts, self._model.config)

    def _feeds(self, batch: Batch) -> dict[str, NDArray[np.generic]]:
        """Return the graph's inputs by name."""
        return {**batch.inputs(self._model.config), **self._prompts}
