"""The model folder: four files that belong together.

    model.safetensors    the weights, float16; name, version, config and card in the metadata
    model.onnx           the graph; its weights are references into model.safetensors
    prompts.safetensors  the prompt set, an input of the graph
    policy.json          calibration and thresholds

The sha256 of model.safetensors is the model's digest. The graph carries it, and every engine
refuses a graph that was exported for other weights. Nothing here is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from prompt_iml.engine.detection.views import View
from prompt_iml.engine.errors import DamagedModel, UnknownModel, UsageError
from prompt_iml.engine.model.policy import Policy
from prompt_iml.engine.model.prompts import PromptSet, check_fits, load_prompts, save_prompts
from prompt_iml.engine.network.config import NetworkConfig

PACKAGED = Path(__file__).parents[1] / "models"
WEIGHTS, GRAPH = "model.safetensors", "model.onnx"
PROMPTS, POLICY = "prompts.safetensors", "policy.json"
WEIGHTS_DIGEST = "weights_sha256"  # key of the graph's metadata
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
        prompts: the prompt set in the folder.
        policy: calibration and thresholds.
    """

    name: str
    version: str
    folder: Path
    config: NetworkConfig
    card: Mapping[str, Any]
    sha256: str
    prompts: PromptSet
    policy: Policy

    @property
    def id(self) -> str:
        """The id in result rows: `name@version`."""
        return f"{self.name}@{self.version}"

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

    def weights(self) -> dict[str, NDArray[np.float16]]:
        """Load the network's parameters without the prompts, by their names in the network."""
        return load_file(self.folder / WEIGHTS)


def load_model(name_or_path: str | Path) -> Model:
    """Open a packaged model (`NAME` or `NAME@VERSION`) or a model folder.

    Raises:
        UnknownModel: there is no such model; the message lists the packaged ones.
        DamagedModel: a file is missing, unreadable, or does not fit the others.
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
    for name in (WEIGHTS, GRAPH, PROMPTS, POLICY):
        if not (folder / name).is_file():
            raise DamagedModel(f"{folder} is not a model folder: it has no {name}")
    header = read_header(folder / WEIGHTS)
    prompts = load_prompts(folder / PROMPTS)
    check_fits(prompts, header["config"])
    return Model(
        folder=folder,
        sha256=file_digest(folder / WEIGHTS),
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


def check_digest(recorded: str | None, model: Model) -> None:
    """Raise `DamagedModel` unless the digest that a graph carries is that of the weights."""
    if recorded != model.sha256:
        found = f"weights {recorded[:12]}" if recorded else "no known weights"
        raise DamagedModel(
            f"{model.graph} was exported for {found}, and {WEIGHTS} beside it is "
            f"{model.sha256[:12]}: fetch or export the model again"
        )


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
