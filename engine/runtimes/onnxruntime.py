"""ONNX Runtime on the CPU, which runs the exported file unchanged, with its local function."""

from __future__ import annotations

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as errors

from prompt_iml.engine.errors import DamagedModel, InferError
from prompt_iml.engine.model.folder import WEIGHTS_DIGEST, Model, check_digest
from prompt_iml.engine.model.prompts import PromptSet, graph_inputs
from prompt_iml.engine.runtimes.protocol import Batch, Detection, Done, Engine

_LOAD_ERRORS = (errors.Fail, errors.InvalidGraph, errors.InvalidProtobuf, errors.NoSuchFile)
_RUN_ERRORS = (errors.Fail, errors.InvalidArgument, errors.RuntimeException)


class OnnxRuntimeEngine(Engine):
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
        check_digest(self._session.get_modelmeta().custom_metadata_map.get(WEIGHTS_DIGEST), model)
        self._model = model
        self.load_prompts(model.prompts)

    def load_prompts(self, prompts: PromptSet) -> None:
        """Use another prompt set from the next batch on."""
        self._prompts = graph_inputs(prompts, self._model.config)

    def submit(self, batch: Batch) -> Done:
        """Run the batch. Raises `InferError` when ONNX Runtime fails."""
        feeds: dict[str, NDArray[np.generic]] = {"image": batch.image, **self._prompts}
        if self._model.config.jpeg_view:
            feeds["qtable"] = batch.qtable
        try:
            mask_logits, score_logit = self._session.run(["mask_logits", "score_logit"], feeds)
        except _RUN_ERRORS as error:
            raise InferError(f"{self.name}: {error}") from error
        return Done(Detection(mask_logits, score_logit))
