"""A model folder whose network does nothing: what is left of a scan is the pipeline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto as Type
from onnx import helper

from prompt_iml.engine.model.folder import GRAPH, WEIGHTS, file_digest, save_folder
from prompt_iml.engine.model.graph_file import BLANK, GRAPH_DIGEST, WEIGHTS_DIGEST, seal
from prompt_iml.engine.model.policy import UNTRAINED
from prompt_iml.engine.model.prompts import PromptSet
from prompt_iml.engine.network.config import PRESETS

CONFIG = PRESETS["prompt-iml-micro"]
CONTEXT = {"qtable": ["n", 64], "histogram": ["n", 20, 16], "matches": ["n", 6, "h8", "w8"]}


def write_null_model(
    folder: Path, notes: tuple[str, ...] = (), context: bool = True, logit: float = -8
) -> Path:
    """Every pixel gets the logit; no pixel is read. `notes` are what its users are told.

    Without `context` the network takes pixels alone, so that none is computed for it.
    """
    config = CONFIG if context else replace(CONFIG, jpeg_view=None, match_map=False)
    shapes = config.prompt_shapes
    save_folder(
        folder,
        name="null",
        version="bench",
        config=config,
        card={"notes": list(notes)},
        weights={"none": np.zeros(1, np.float32)},
        prompts=PromptSet(tuple(np.zeros(shape, np.float32) for shape in shapes)),
        policy=UNTRAINED,
    )
    prompts = [
        helper.make_tensor_value_info(f"prompts_{i}", Type.FLOAT, shape)
        for i, shape in enumerate(shapes)
    ]
    model = helper.make_model(
        helper.make_graph(
            _nodes(),
            "null",
            [
                helper.make_tensor_value_info("image", Type.UINT8, ["n", "h", "w", 3]),
                *(
                    helper.make_tensor_value_info(name, Type.FLOAT, CONTEXT[name])
                    for name in config.input_names[1:]
                ),
                *prompts,
            ],
            [
                helper.make_tensor_value_info("mask_logits", Type.FLOAT, ["n", "h4", "w4"]),
                helper.make_tensor_value_info("score_logit", Type.FLOAT, ["n"]),
            ],
            [_ints("n", 0), _ints("hw", 1, 2), _ints("stride", 4),
             helper.make_tensor("logit", Type.FLOAT, [1], [logit])],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )  # fmt: skip
    digests = {WEIGHTS_DIGEST: file_digest(folder / WEIGHTS), GRAPH_DIGEST: BLANK}
    helper.set_model_props(model, digests)
    onnx.checker.check_model(model)
    (folder / GRAPH).write_bytes(seal(model.SerializeToString()))
    return folder


def _nodes() -> list[onnx.NodeProto]:
    return [
        helper.make_node("Shape", ["image"], ["shape"]),
        helper.make_node("Gather", ["shape", "n"], ["count"]),
        helper.make_node("Gather", ["shape", "hw"], ["sides"]),
        helper.make_node("Div", ["sides", "stride"], ["cells"]),
        helper.make_node("Concat", ["count", "cells"], ["mask_shape"], axis=0),
        helper.make_node("Expand", ["logit", "mask_shape"], ["mask_logits"]),
        helper.make_node("Expand", ["logit", "count"], ["score_logit"]),
    ]


def _ints(name: str, *values: int) -> onnx.TensorProto:
    return helper.make_tensor(name, Type.INT64, [len(values)], list(values))
