"""The model folder: four files that belong together.

    model.safetensors    the weights, float16; name, version, config and card in the metadata
    model.onnx           the graph; its weights are references into model.safetensors
    prompts.safetensors  the prompt set, an input of the graph
    policy.json          calibration and thresholds

A model is all of them: one digest covers weights, graph, prompts and policy. The graph carries the
digest of its weights and of itself, so that a graph of other weights, or one that was changed, is
refused. Nothing here is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from prompt_iml.engine.detection.views import View
from prompt_iml.engine.errors import DamagedModel, UnknownModel, UsageError
from prompt_iml.engine.model.graph_file import GRAPH_DIGEST, WEIGHTS_DIGEST, digest_of, recorded
from prompt_iml.engine.model.policy import Policy
from prompt_iml.engine.model.prompts import PromptSet, check_fits, load_prompts, save_prompts
from prompt_iml.engine.network.config import NetworkConfig

PACKAGED = Path(__file__).parents[1] / "models"
WEIGHTS, GRAPH = "model.safetensors", "model.onnx"
PROMPTS, POLICY = "prompts.safetensors", "policy.json"
_EXPORT = "prompt_iml.engine.build.export"
_METADATA = "model"  # a single key, because safetensors writes several in no fixed order


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A model folder, opened and checked.

    Attributes:
        name, version: the parts of an id like `prompt-iml-micro@untrained`.
        folder: the folder of the files.
        config: sizes of the network.
        card: description by the model's authors: `summary`, `notes`, ...
        sha256: digest of the weights file.
        graph_sha256: digest of the graph (`engine.model.graph_file`).
        prompts: the prompt set in the folder.
        policy: calibration and thresholds.
    """

    name: str
    version: str
    folder: Path
    config: NetworkConfig
    card: Mapping[str, Any]
    sha256: str
    graph_sha256: str
    prompts: PromptSet
    policy: Policy

    @property
    def id(self) -> str:
        """The id in result rows: `name@version`."""
        return f"{self.name}@{self.version}"

    @property
    def digest(self) -> str:
        """The digest in result rows: of weights, graph, prompts and policy together."""
        files = [self.sha256, self.graph_sha256, self.prompts.sha256, self.policy.to_json()]
        return hashlib.sha256("\n".join(files).encode()).hexdigest()

    @property
    def reference(self) -> str:
        """An argument of `load_model` for any process: a packaged name, or an absolute path."""
        return self.name if self.folder.parent == PACKAGED else str(self.folder.absolute())

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings that every user of the model sees."""
        return tuple(self.card.get("notes", ()))

    @property
    def view(self) -> View:
        """The view that the model prefers."""
        name = self.config.views[0]
        if name not in ("fit", "native"):
            raise DamagedModel(f"{self.id}: this version knows no view {name}")
        takes_context = len(self.config.input_names) > 1
        return View("fit" if name == "fit" else "native", self.config.sides, context=takes_context)

    @property
    def graph(self) -> Path:
        """The ONNX file."""
        return self.folder / GRAPH

    def looking_closer(self, tiles: int | None) -> Model:
        """Return the model with another `Policy.closer_look`; None: with that of its policy."""
        if tiles is None:
            return self
        return replace(self, policy=replace(self.policy, closer_look=tiles))

    def weights(self) -> dict[str, NDArray[np.float16]]:
        """Load the network's parameters without the prompts, by their names in the network."""
        return load_file(self.folder / WEIGHTS)


def load_model(name_or_path: str | Path) -> Model:
    """Open a packaged model (`NAME` or `NAME@VERSION`) or a model folder.

    Raises:
        UnknownModel: there is no such model; the message lists the packaged ones.
        DamagedModel: a file is missing, unreadable, was changed, or does not fit the others.
    """
    name, _, version = str(name_or_path).partition("@")
    if Path(name).name == name and (PACKAGED / name / WEIGHTS).is_file():
        model = open_folder(PACKAGED / name)
        if version in ("", model.version):
            return model
    if Path(name_or_path).is_dir():
        return open_folder(Path(name_or_path))
    known = ", ".join(known_models())
    raise UnknownModel(f"no model '{name_or_path}': give one of {known}, or a model folder")


def known_models() -> list[str]:
    """Return the ids of the packaged models."""
    return [open_folder(file.parent).id for file in sorted(PACKAGED.glob(f"*/{WEIGHTS}"))]


def open_folder(folder: Path) -> Model:
    """Open a model folder without loading weights or graph. Raises as `load_model`."""
    model = open_without_graph(folder)
    return replace(model, graph_sha256=_checked_graph(model))


def open_without_graph(folder: Path) -> Model:
    """Open a model folder whose graph, if there is one, is to be exported anew.

    Its `graph_sha256` is empty. Raises as `load_model`.
    """
    for name in (WEIGHTS, PROMPTS, POLICY):
        if not (folder / name).is_file():
            raise DamagedModel(f"{folder} is not a model folder: it has no {name}")
    header = read_header(folder / WEIGHTS)
    prompts = load_prompts(folder / PROMPTS)
    check_fits(prompts, header["config"])
    return Model(
        folder=folder,
        sha256=file_digest(folder / WEIGHTS),
        graph_sha256="",
        prompts=prompts,
        policy=Policy.from_json((folder / POLICY).read_text()),
        **header,
    )


def file_digest(path: Path) -> str:
    """Return the sha256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_folder(
    folder: Path,
    *,
    name: str,
    version: str,
    config: NetworkConfig,
    card: Mapping[str, Any],
    weights: Mapping[str, NDArray[np.floating]],
    prompts: PromptSet,
    policy: Policy,
) -> None:
    """Write a model folder without the graph, which `engine.build.export` adds.

    Raises `UsageError` when a weight is not finite in float16, the type of stored weights.
    """
    header = {"name": name, "version": version, "config": config.to_dict(), "card": dict(card)}
    folder.mkdir(parents=True, exist_ok=True)
    stored = {key: _as_stored(key, tensor) for key, tensor in weights.items()}
    metadata = {_METADATA: json.dumps(header, sort_keys=True)}
    (folder / WEIGHTS).write_bytes(save(stored, metadata))
    save_prompts(prompts, folder / PROMPTS)
    (folder / POLICY).write_text(policy.to_json())


def _checked_graph(model: Model) -> str:
    """Return the graph's digest; raise `DamagedModel` unless it is as it was exported for the
    weights beside it."""
    try:
        graph = model.graph.read_bytes()
    except OSError as error:
        raise DamagedModel(f"{model.folder} is not a model folder: it has no {GRAPH}") from error
    weights, own = recorded(graph, WEIGHTS_DIGEST), recorded(graph, GRAPH_DIGEST)
    fix = f"fetch the model again, or python -m {_EXPORT} --output {model.folder}"
    if weights != model.sha256:
        found = f"weights {weights[:12]}" if weights else "no known weights"
        raise DamagedModel(
            f"{model.graph} was exported for {found}, and {WEIGHTS} beside it is "
            f"{model.sha256[:12]}: {fix}"
        )
    if own is None or own != digest_of(graph):
        raise DamagedModel(f"{model.graph} was changed after it was exported: {fix}")
    return own


def _as_stored(key: str, tensor: NDArray[np.floating]) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        # not ascontiguousarray, which turns a scalar into an array (1,)
        stored = np.asarray(tensor, np.float16, order="C")
    if not np.isfinite(stored).all():
        raise UsageError(f"{key} holds a value that is not finite in float16")
    return stored


def read_header(path: Path) -> dict[str, Any]:
    """Read name, version, config and card from the metadata of a weights file."""
    try:
        with safe_open(path, framework="numpy") as file:
            header: dict[str, Any] = json.loads(file.metadata()[_METADATA])
        header["config"] = NetworkConfig.from_dict(header["config"])
        return {key: header[key] for key in ("name", "version", "config", "card")}
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise DamagedModel(f"{path} is not a model's weights ({error}): fetch it again") from error
