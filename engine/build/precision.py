"""Prepare the exported graph for a GPU's builder: fix sizes, fold constants, set half precision.

TensorRT takes each tensor's precision from the file (a `strongly typed` network), so this module
decides which operators stay in float32:

- operators before a `Round` or an `ArgMax`, where a small error changes the result: everything
  before the JPEG view's counts, and before its choice of a first save's step;
- operators on small differences of large numbers: stems, norms, means, softmax, logarithms;
- operators that compute sampling locations: half precision does not resolve half a pixel of 2,048.

`choose_float32` finds further operators by measuring. The file stores weights as float16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import onnx_ir as ir
from onnx_ir.passes import common as passes
from onnxscript import optimizer

from prompt_iml.engine.network.beyond.dct import BLOCK
from prompt_iml.engine.network.config import MATCH_FEATURES
from prompt_iml.engine.operator.onnx_op import NAME
from prompt_iml.engine.runtimes.plans import Precision

FLOAT32 = frozenset(  # operators that always stay in float32
    {"LayerNormalization", "InstanceNormalization", "Softmax", "ReduceMean", "Exp", "Log"}
)
FOLDED = 1 << 24  # most elements of a folded constant; position biases are the largest
_FLOAT = ir.DataType.FLOAT
_DTYPES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
# Positions of the inputs that stay float32 in every node of an operator.
_FLOAT_INPUTS = {"Resize": {1, 2}, NAME: {2, 3}}
# Operators without a precision of their own, and casts.
_UNTOUCHED = {"Cast", "CastLike", "Constant", "Shape", "IsNaN"}


def specialised(model: ir.Model, height: int, width: int) -> ir.Model:
    """Fix the image size of a graph (in place); the batch size stays free.

    Half of the nodes compute with sizes, and fold into constants.
    """
    for value in model.graph.inputs:
        if value.name == "image":
            value.shape = ir.Shape(["N", height, width, 3])
        elif value.name == "matches":
            value.shape = ir.Shape(["N", MATCH_FEATURES, height // BLOCK, width // BLOCK])
    optimizer.fold_constants(model, input_size_limit=FOLDED, output_size_limit=FOLDED)
    passes.RemoveUnusedNodesPass()(model)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.ShapeInferencePass()(model)
    return model


def default_float32(graph: ir.Graph) -> set[ir.Node]:
    """Return the nodes that stay in float32 by the rules above."""
    float32 = {node for node in graph if node.op_type in FLOAT32}
    for node in graph:
        if node.op_type in ("Round", "ArgMax"):
            float32 |= {node, *_ancestors(node.inputs)}
        elif node.op_type == NAME:
            float32 |= set(_ancestors(node.inputs[2:3], until=("MatMul", "Gemm")))
        elif node.op_type in ("Conv", "ConvTranspose") and not _follows_a_norm(node):
            float32 |= {node}
    return float32


def halve(model: ir.Model, precision: Precision, float32: Iterable[ir.Node]) -> ir.Model:
    """Convert a graph to half precision (in place); its inputs and outputs stay float32.

    Args:
        model: from `specialised`, whose values have types.
        precision: `float32` changes nothing.
        float32: nodes of its graph that stay in float32.
    """
    if precision == "float32":
        return model
    half, kept = _Halves(model.graph, _DTYPES[precision]), set(float32)
    for node in list(model.graph):
        if node not in kept and node.op_type not in _UNTOUCHED:
            half.put(node)
    passes.RemoveUnusedNodesPass()(model)
    return model


def emulate(model: ir.Model) -> ir.Model:
    """Make each half-precision node compute in float32 and round its output (in place).

    CPU runtimes have no half precision for most operators and omit the rounding. With this graph
    they round as a GPU does that accumulates in float32.
    """
    halves, wide = set(_DTYPES.values()), dict[ir.Value, ir.Value]()
    for node in list(model.graph):
        if node.op_type == "Cast":
            continue
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype in halves:
                if value not in wide:
                    wide[value] = _insert_cast(model.graph, value, _FLOAT)
                node.replace_input_with(index, wide[value])
        for value in [value for value in node.outputs if value.dtype in halves]:
            dtype, users = value.dtype, list(value.uses())
            assert dtype is not None
            value.dtype = _FLOAT
            rounded = _insert_cast(model.graph, value, dtype)
            for user, index in users:
                user.replace_input_with(index, rounded)
    return model


def choose_float32(
    candidates: Iterable[str], error: Callable[[frozenset[str]], float], tolerance: float
) -> tuple[frozenset[str], float]:
    """Search greedily for further operators to keep in float32: each round adds the best one.

    The choice may differ between processors, because their rounding does.

    Args:
        candidates: operator types.
        error: returns the error with a set of operator types in float32.
        tolerance: error at which the search ends.

    Returns:
        The operator types and their error, which is above the tolerance if no further type helps.
    """
    chosen, left = frozenset[str](), set(candidates)
    best = error(chosen)
    while best > tolerance and left:
        errors = {name: error(chosen | {name}) for name in sorted(left)}
        name = min(errors, key=lambda each: errors[each])
        if errors[name] >= best:
            break
        chosen, best = chosen | {name}, errors[name]
        left.remove(name)
    return chosen, best


class _Halves:
    """The half-precision copies of float32 values, each made when it is first needed."""

    def __init__(self, graph: ir.Graph, dtype: ir.DataType) -> None:
        self._graph, self._dtype = graph, dtype
        self._copies: dict[ir.Value, ir.Value] = {}

    def put(self, node: ir.Node) -> None:
        """Give a node half-precision inputs and outputs."""
        floats = _FLOAT_INPUTS.get(node.op_type, set())
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype == _FLOAT and index not in floats:
                node.replace_input_with(index, self._of(value))
        for value in node.outputs:
            if value.dtype == _FLOAT:
                self._widen(value)

    def _of(self, value: ir.Value) -> ir.Value:
        if value not in self._copies:
            cast = self._stored(value) or _insert_cast(self._graph, value, self._dtype)
            self._copies[value] = cast
        return self._copies[value]

    def _stored(self, value: ir.Value) -> ir.Value | None:
        """Return the stored half-precision weight that the value was cast from, if it was."""
        cast = value.producer()
        source = cast.inputs[0] if cast is not None and cast.op_type == "Cast" else None
        return source if source is not None and source.dtype == self._dtype else None

    def _widen(self, value: ir.Value) -> None:
        """Insert a cast to float32 behind a half-precision output, for nodes that need float32."""
        name, users = value.name, list(value.uses())
        value.name, value.dtype = f"{name}:half", self._dtype
        wide = _insert_cast(self._graph, value, _FLOAT)
        wide.name, wide.shape = name, value.shape
        for user, index in users:
            user.replace_input_with(index, wide)
        for index, output in enumerate(self._graph.outputs):
            if output is value:
                self._graph.outputs[index] = wide
        self._copies[wide] = value


def _insert_cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """Return the value in another precision, cast by a node right after its producer."""
    node = ir.node("Cast", [value], {"to": dtype})
    cast = node.outputs[0]
    cast.name, cast.dtype = f"{value.name}:{dtype.name.lower()}", dtype
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(producer, node)
    return cast


def _ancestors(values: Iterable[ir.Value | None], until: tuple[str, ...] = ()) -> Iterator[ir.Node]:
    """Yield the nodes that values depend on; stop before operator types of `until`."""
    seen, waiting = set[ir.Node](), [value for value in values if value is not None]
    while waiting:
        node = waiting.pop().producer()
        if node is None or node in seen or node.op_type in until:
            continue
        seen.add(node)
        yield node
        waiting.extend(value for value in node.inputs if value is not None)


def _follows_a_norm(node: ir.Node) -> bool:
    return any(before.op_type.endswith("Normalization") for before in _ancestors(node.inputs))
