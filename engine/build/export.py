"""Export a network to a model folder: one ONNX file for every runtime, behind a parity gate.

    python -m prompt_iml.engine.build.export [--preset NAME] [--seed N | --weights FILE] \
        [--output FOLDER]

writes a model folder whose policy has no thresholds, until `prompt-iml calibrate` computes them.
Without seed and weights, it exports the graph of the folder's own weights again.

The graph holds no weights: its initializers are references into model.safetensors, whose float16
tensors it casts to float32, which runtimes do once, on loading. So the weights are stored once.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from onnxscript import optimizer
from safetensors.torch import load_file
from torch.export import Dim

from prompt_iml.engine.detection.context import BINS, COEFFICIENTS
from prompt_iml.engine.errors import PromptImlError
from prompt_iml.engine.model.folder import (
    GRAPH,
    PACKAGED,
    WEIGHTS,
    Model,
    file_digest,
    open_folder,
    open_without_graph,
    save_folder,
)
from prompt_iml.engine.model.graph_file import BLANK, GRAPH_DIGEST, WEIGHTS_DIGEST, seal
from prompt_iml.engine.model.policy import UNTRAINED, Policy
from prompt_iml.engine.model.prompts import PREFIX, PromptSet
from prompt_iml.engine.network.beyond.dct import BLOCK
from prompt_iml.engine.network.config import MATCH_FEATURES, PRESETS, NetworkConfig
from prompt_iml.engine.network.model import PromptIML
from prompt_iml.engine.operator.onnx_op import DOMAIN, FUNCTION, OPSET, VERSION
from prompt_iml.engine.runtimes.open import open_engine
from prompt_iml.engine.runtimes.parity import TOLERANCES, compare, missed_prompts, noise
from prompt_iml.engine.runtimes.torch_cpu import TorchEngine, load_network

BATCH_SIZES = (1, 4)  # of the comparison before a model is stored
TOLERANCE = TOLERANCES["float32"]
# Inputs of the graph -> parameters of the network.
PARAMETERS = {
    "image": "image_BHW3",
    "qtable": "qtable_B64",
    "histogram": "histogram_BAN",
    "matches": "matches_BFHW",
}
INSENSITIVE = 0.1  # share of the prompts' effect that an engine may miss
UNCLAIMED = "the model is untrained: nothing is claimed for masks and scores"


def export_model(
    network: PromptIML,
    output: Path,
    *,
    version: str,
    card: Mapping[str, Any],
    policy: Policy,
    engines: Sequence[str] = ("openvino", "onnxruntime"),
) -> Model:
    """Write a network as a model folder, if every engine agrees with PyTorch.

    Args:
        network: the network; its own prompts become the prompt set.
        output: the folder; its files are replaced one by one, the graph last.
        version: the part of the model's id after the @.
        card: `summary`, `notes` (warnings that every user sees), and further facts.
        policy: calibration and thresholds.
        engines: kinds of engine to compare with PyTorch.

    Raises:
        PromptImlError: an engine differs by more than the tolerance; nothing is stored.
    """
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as staging:
        folder = Path(staging)
        state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
        prompts = [tensor for name, tensor in state.items() if name.startswith(PREFIX)]
        save_folder(
            folder,
            name=network.config.name,
            version=version,
            config=network.config,
            card=card,
            weights={n: tensor for n, tensor in state.items() if not n.startswith(PREFIX)},
            prompts=PromptSet(tuple(prompts)),
            policy=policy,
        )
        graph = _graph(network, folder / WEIGHTS)
        (folder / GRAPH).write_bytes(seal(graph.SerializeToString()))
        check_parity(open_folder(folder), engines)
        for file in sorted(folder.iterdir(), key=lambda file: file.name == GRAPH):
            file.replace(output / file.name)
    return open_folder(output)


def check_parity(model: Model, engines: Sequence[str]) -> None:
    """Compare outputs and the effect of prompts between engines and PyTorch, for batches of 1 and 4
    and two image sizes, one of them not square.

    Raises:
        PromptImlError: an engine differs by more than the tolerance, or ignores prompts.
    """
    sides, reference = model.config.sides, TorchEngine(model)
    shapes = sorted({(sides[0], sides[0]), (sides[-1], sides[0])})
    for kind in engines:
        cases, engine = noise(shapes, BATCH_SIZES), open_engine(model, kind)
        parity = compare(engine, reference, cases, TOLERANCE)
        line = f"{parity.engine} differs from PyTorch: {parity.worst}"
        print(f"{model.id}: {line}", file=sys.stderr)
        if not parity.passed:
            raise PromptImlError(f"{line}: not stored")
        if (missed := missed_prompts(engine, reference, model.prompts, cases[0])) > INSENSITIVE:
            raise PromptImlError(f"{parity.engine} misses {missed:.0%} of the prompts' effect")


def _graph(network: PromptIML, weights: Path) -> onnx.ModelProto:
    """Return the network as ONNX that refers to the weights in the file `weights`."""
    model = _trace(network.eval())
    graph = model.graph
    names = [name for name, _ in network.named_parameters() if name in graph.initializers]
    parameters = {name: graph.initializers.pop(name) for name in names}
    # Parameters are inputs while the graph is simplified, so that none is folded or merged.
    for value in parameters.values():
        value.const_value = None
        graph.inputs.append(value)
    _simplify(model)
    _strip(model, network.config)
    tensors = _stored(weights)
    for name, value in parameters.items():
        graph.inputs.remove(value)
        if value.uses():
            _refer(graph, value, tensors[name])
    function = ir.serde.deserialize_function(onnx.parser.parse_function(FUNCTION))
    model.functions[function.identifier()] = function
    model.opset_imports[DOMAIN] = VERSION
    model.metadata_props[WEIGHTS_DIGEST] = file_digest(weights)
    model.metadata_props[GRAPH_DIGEST] = BLANK
    return ir.to_proto(model)


def _trace(network: PromptIML) -> ir.Model:
    config = network.config
    batch = Dim("batch", min=1)
    height = width = config.sides[-1]
    image_dims: dict[int, Any] = {0: batch}
    block_dims: dict[int, Any] = {0: batch}
    if len(config.sides) > 1:  # different and not 1, or the tracer would fix a dimension
        step = math.gcd(*config.sides)
        height, width = 2 * step, 3 * step
        rows, columns = Dim("rows", min=1), Dim("columns", min=1)
        image_dims |= {1: step * rows, 2: step * columns}
        block_dims |= {2: step // BLOCK * rows, 3: step // BLOCK * columns}
    prompts = [prompt.detach() for prompt in network.prompts]
    batch_only = {0: batch}
    examples: dict[str, tuple[Any, Any]] = {
        "image": (torch.zeros(2, height, width, 3, dtype=torch.uint8), image_dims),
        "qtable": (torch.ones(2, 64), batch_only),
        "histogram": (torch.full((2, COEFFICIENTS, BINS), 1 / BINS), batch_only),
        "matches": (
            torch.zeros(2, MATCH_FEATURES, height // BLOCK, width // BLOCK),
            block_dims,
        ),
    }
    # By name: the exporter confuses the dimensions of inputs after one that is left out.
    taken = {PARAMETERS[name]: examples[name] for name in config.input_names}
    taken["prompts"] = prompts, [None] * len(prompts)
    with warnings.catch_warnings(action="ignore"):  # of the exporter about itself
        program = torch.onnx.export(
            network,
            (),
            kwargs={name: value for name, (value, _) in taken.items()},
            input_names=_input_names(config),
            output_names=["mask_logits", "score_logit"],
            dynamic_shapes={name: dims for name, (_, dims) in taken.items()},
            opset_version=OPSET,
            dynamo=True,
            optimize=False,
            verbose=False,
        )
    assert program is not None
    return program.model


def _input_names(config: NetworkConfig) -> list[str]:
    return [*config.input_names, *(f"prompts_{i}" for i in range(len(config.prompt_shapes)))]


def _simplify(model: ir.Model) -> None:
    """Merge common subexpressions (more than half of the nodes) and fold constants."""
    passes.CommonSubexpressionEliminationPass()(model)
    optimizer.fold_constants(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.DeduplicateInitializersPass(size_limit=1 << 20)(model)
    passes.NameFixPass()(model)


def _strip(model: ir.Model, config: NetworkConfig) -> None:
    """Remove the exporter's metadata, and name the sizes of inputs and outputs."""
    passes.ClearMetadataAndDocStringPass()(model)
    graph = model.graph
    graph.name, model.producer_name, model.producer_version = config.name, "prompt-iml", None
    inner = [value for node in graph for value in node.outputs if not value.is_graph_output()]
    for value in [*inner, *graph.initializers.values()]:
        value.shape = value.type = None
    for value in [*inner, *graph.initializers.values(), *graph.inputs, *graph.outputs]:
        value.metadata_props.clear()
    for node in graph:
        node.name = None
    mask_logits, score_logit = graph.outputs
    height, width = ("H", "W") if len(config.sides) > 1 else config.sides * 2
    mask_height, mask_width = (
        f"{side}/4" if isinstance(side, str) else side // 4 for side in (height, width)
    )
    blocks = [f"{s}/8" if isinstance(s, str) else s // BLOCK for s in (height, width)]
    shapes: dict[str | None, list[int | str]] = {
        "image": ["N", height, width, 3],
        "qtable": ["N", 64],
        "histogram": ["N", COEFFICIENTS, BINS],
        "matches": ["N", MATCH_FEATURES, *blocks],
    }
    for value in graph.inputs:
        if value.name in shapes:
            value.shape = ir.Shape(shapes[value.name])
    mask_logits.shape = ir.Shape(["N", mask_height, mask_width])
    score_logit.shape = ir.Shape(["N"])


def _refer(graph: ir.Graph, parameter: ir.Value, tensor: ir.ExternalTensor) -> None:
    """Replace a parameter by the cast of its stored tensor."""
    stored = ir.Value(name=tensor.name, const_value=tensor)
    graph.register_initializer(stored)
    cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT})
    cast.outputs[0].name = f"{tensor.name}:float32"
    graph.insert_before(graph[0], cast)
    parameter.replace_all_uses_with(cast.outputs[0])


def _stored(weights: Path) -> dict[str, ir.ExternalTensor]:
    """Return references to the tensors of a safetensors file, read from its header."""
    with weights.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start - 8))
    del header["__metadata__"]
    references = {}
    for name, tensor in header.items():
        begin, end = tensor["data_offsets"]
        references[name] = ir.ExternalTensor(
            weights.name,
            start + begin,
            end - begin,
            ir.DataType.FLOAT16,
            shape=ir.Shape(tensor["shape"]),
            name=name,
            base_dir=weights.parent,
        )
    return references


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a model folder from trained weights or a seed; with neither, the graph anew."""
    parser = argparse.ArgumentParser(
        prog="python -m prompt_iml.engine.build.export", description=__doc__
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="prompt-iml-micro")
    parser.add_argument("--seed", type=int, help="seed of random weights")
    parser.add_argument("--weights", type=Path, help="state dict, as `prompt-iml train` writes it")
    parser.add_argument("--version", default="untrained", help="part of the model's id after the @")
    parser.add_argument("--summary", default="Random weights.", help="one sentence about the model")
    parser.add_argument("--note", action="append", default=[], help="warning to the model's users")
    parser.add_argument("--output", type=Path, help="model folder; default: the packaged one")
    options = parser.parse_args(arguments)
    folder = options.output or PACKAGED / options.preset
    if options.weights is None and options.seed is None:
        model = open_without_graph(folder)
        export_model(
            load_network(model), folder, version=model.version, card=model.card, policy=model.policy
        )
        return
    torch.manual_seed(options.seed or 0)
    network = PromptIML(PRESETS[options.preset])
    if options.weights:
        network.load_state_dict(load_file(options.weights))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    model = export_model(
        network,
        folder,
        version=options.version,
        card={
            "summary": options.summary,
            "notes": options.note or ([UNCLAIMED] if options.version == "untrained" else []),
            "parameters": parameters,
            "architecture": "Prompt-IML, arXiv 2401.00653",
            "license": "Apache-2.0",
        },
        policy=UNTRAINED,
    )
    print(f"{model.id}: {parameters:,} parameters in {model.folder}")


if __name__ == "__main__":
    main()
