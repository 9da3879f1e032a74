"""ONNX Runtime on the CPU, which runs the exported file unchanged, with its local function."""

from __future__ import annotations

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as errors

from prompt_iml.engine.errors import DamagedModel, InferError
from prompt_iml.engine.model.folder import Model
from prompt_iml.engine.runtimes.protocol import Batch, Detection, Done, GraphEngine

_LOAD_ERRORS = (errors.Fail, errors.InvalidGraph, errors.InvalidProtobuf, errors.NoSuchFile)
_RUN_ERRORS = (errors.Fail, errors.InvalidArgument, errors.RuntimeException)


class OnnxRuntimeEngine(GraphEngine):
    """Float32 on the CPU with `threads` threads, or one for each core."""

    name = "onnxruntime/f32/cpu"

    def __init__(self, model: Model, threads: int | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                model.graph, options, providers=["CPUExecutionProvider"]
            )
        except _LOAD_ERRORS as error:
            raise DamagedModel(f"{self.name} cannot load {model.graph}: {error}") from error
        super().__init__(model)

    def submit(self, batch: Batch) -> Done:
        """Run the batch. Raises `InferError` when ONNX Runtime fails."""
        try:
            mask_logits, score_logit = self._session.run(
                ["mask_logits", "score_logit"], self._feeds(batch)
            )
        except _RUN_ERRORS as error:
            raise InferError(f"{self.name}: {error}") from error
        return Done(Detection(mask_logits, score_logit))
