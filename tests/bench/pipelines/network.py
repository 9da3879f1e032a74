"""The null network on a file, as each of the other pipelines runs it; needs nothing of ours."""

from __future__ import annotations

import io
import time

import numpy as np
import onnxruntime
from PIL import Image


class NullNetwork:
    """Decode a file, and run the network on it with one thread.

    Args:
        graph: path of the ONNX file.
    """

    def __init__(self, graph: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(graph, options)
        _, *prompts = self._session.get_inputs()
        self._prompts = {each.name: np.zeros(each.shape, np.float32) for each in prompts}

    def run(self, body: bytes) -> tuple[float, float]:
        """Return the score, and when it was computed, in seconds since 1970."""
        pixels = np.asarray(Image.open(io.BytesIO(body)).convert("RGB"))[None]
        (score,) = self._session.run(["score_logit"], {"image": pixels, **self._prompts})
        return float(score[0]), time.time()
