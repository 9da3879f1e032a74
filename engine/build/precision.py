"""The exported graph made ready for a GPU's builder: sizes fixed, constants folded, half precision.

Builders of today take each tensor's precision from the file (`strongly typed`), so which parts stay
in float32 is decided here. Those are the islands:

- where a rounding decides, or which of many is highest: all before the JPEG view's counts, and all
  before the best matches;
- where small differences of large numbers count: the stems, norms, means, softmax, logarithms;
- the sampling locations: half a pixel of 2,048 is less than half precision resolves.

What they leave out, `choose_islands` finds by measuring. Weights lie in the file as float16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import onnx_ir as ir
from onnx_ir.passes import common as passes
from onnxscript import optimizer

from prompt_iml.engine.operator.onnx_op import NAME
from prompt_iml.engine.runtimes.plans import Precision

ISLANDS = frozenset(
    {"LayerNormalization", "InstanceNormalization", "Softmax", "ReduceMean", "Exp", "Log"}
)
FOLDED = 1 << 24  # elements of a constant, at most; position biases are the largest
_FLOAT = ir.DataType.FLOAT
_DTYPES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
# Inputs that stay float32 in every node: by operator, their positions.
_FLOAT_INPUTS = {"Resize": {1, 2}, NAME: {2, 3}}
# They have no precision of their own, or turn one into another.
_UNTOUCHED = {"Cast", "CastLike", "Constant", "Shape", "IsNaN"}


def specialised(model: ir.Model, height: int, width: int) -> ir.Model:
    """The graph for images of one size (in place): the arithmetic of sizes folds away, half of it.

    The batch stays free.
    """
    image = model.graph.inputs[0]
    image.shape = ir.Shape(["N", height, width, 3])
    optimizer.fold_constants(model, input_size_limit=FOLDED, output_size_limit=FOLDED)
    passes.RemoveUnusedNodesPass()(model)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.ShapeInferencePass()(model)
    return model


def default_islands(graph: ir.Graph) -> set[ir.Node]:
    """The nodes that stay in float32, by the rules above."""
    islands = {node for node in graph if node.op_type in ISLANDS}
    for node in graph:
        if node.op_type in ("Round", "ArgMax"):
            islands |= {node, *_ancestors(node.inputs)}
        elif node.op_type == NAME:
            islands |= set(_ancestors(node.inputs[2:3], until=("MatMul", "Gemm")))
        elif node.op_type in ("Conv", "ConvTranspose") and not _follows_a_norm(node):
            islands |= {node}
    return islands


def halve(model: ir.Model, precision: Precision, islands: Iterable[ir.Node]) -> ir.Model:
    """Put all but the islands into half precision (in place); inputs and outputs stay float32.

    Args:
        model: from `specialised`, whose values have types.
        precision: `float32` changes nothing.
        islands: nodes of its graph.
    """
    if precision == "float32":
        return model
    half, spared = _Halves(model.graph, _DTYPES[precision]), set(islands)
    for node in list(model.graph):
        if node not in spared and node.op_type not in _UNTOUCHED:
            half.put(node)
    passes.RemoveUnusedNodesPass()(model)
    return model


def emulate(model: ir.Model) -> ir.Model:
    """Let each half-precision node compute in float32 and round what it gives (in place).

    So a CPU's runtime shows what half precision does, as no runtime of a CPU has it for most
    operators: they leave out the rounding. It is that of a GPU that accumulates in float32.
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


def choose_islands(
    candidates: Iterable[str], error: Callable[[frozenset[str]], float], tolerance: float
) -> tuple[frozenset[str], float]:
    """Operators to keep in float32 besides the default ones until the measured error is small.

    Greedy: each round keeps the one that helps most.

    Args:
        candidates: operator types.
        error: measures a choice.
        tolerance: the error to reach.

    Returns:
        The choice and its error; above the tolerance when no further operator helps.
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
    """The half-precision twin of each float32 value, made when it is first asked for."""

    def __init__(self, graph: ir.Graph, dtype: ir.DataType) -> None:
        self._graph, self._dtype = graph, dtype
        self._twins: dict[ir.Value, ir.Value] = {}

    def put(self, node: ir.Node) -> None:
        """Let a node take and give half precision."""
        floats = _FLOAT_INPUTS.get(node.op_type, set())
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype == _FLOAT and index not in floats:
                node.replace_input_with(index, self._of(value))
        for value in node.outputs:
            if value.dtype == _FLOAT:
                self._widen(value)

    def _of(self, value: ir.Value) -> ir.Value:
        if value not in self._twins:
            cast = self._stored(value) or _insert_cast(self._graph, value, self._dtype)
            self._twins[value] = cast
        return self._twins[value]

    def _stored(self, value: ir.Value) -> ir.Value | None:
        """What was in half precision to begin with: a weight, before its cast."""
        cast = value.producer()
        source = cast.inputs[0] if cast is not None and cast.op_type == "Cast" else None
        return source if source is not None and source.dtype == self._dtype else None

    def _widen(self, value: ir.Value) -> None:
        """Behind an output that is half now, its float32 twin for whoever still wants that."""
        name, users = value.name, list(value.uses())
        value.name, value.dtype = f"{name}:half", self._dtype
        wide = _insert_cast(self._graph, value, _FLOAT)
        wide.name, wide.shape = name, value.shape
        for user, index in users:
            user.replace_input_with(index, wide)
        for index, output in enumerate(self._graph.outputs):
            if output is value:
                self._graph.outputs[index] = wide
        self._twins[wide] = value


def _insert_cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """The value in another precision, from a node right behind the one that made it."""
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
    """The nodes that values are made by; not beyond operators of `until`, nor these."""
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
