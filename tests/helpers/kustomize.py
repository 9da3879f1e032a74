"""The part of Kustomize that our overlays use, so that tests need no binary."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonpatch
import yaml

Document = dict[str, Any]
CLUSTER_WIDE = {"Namespace"}
KNOWN = {
    "apiVersion", "kind", "namespace", "resources", "images", "patches", "replacements",
}  # fmt: skip


def render(folder: Path) -> list[Document]:
    """Return the output of `kubectl kustomize FOLDER`.

    Raises:
        ValueError: it uses a feature that is not here.
    """
    plan = yaml.safe_load((folder / "kustomization.yaml").read_text())
    if unknown := plan.keys() - KNOWN:
        raise ValueError(f"{folder}: {unknown} is not rendered here")
    documents = [each for name in plan["resources"] for each in _load(folder / name)]
    for patch in plan.get("patches", []):
        _patch(documents, patch, folder)
    for document in documents:
        if "namespace" in plan and document["kind"] not in CLUSTER_WIDE:
            document["metadata"]["namespace"] = plan["namespace"]
        _rename_images(document, plan.get("images", []))
    for replacement in plan.get("replacements", []):
        _replace(documents, replacement)
    return documents


def _load(path: Path) -> list[Document]:
    if path.is_dir():
        return render(path)
    return [_plain(each) for each in yaml.safe_load_all(path.read_text())]


def _plain(value: Any) -> Any:
    """With a copy in place of each alias."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def select(documents: list[Document], target: Document) -> Iterator[int]:
    """Places of the documents of that kind and name."""
    for place, document in enumerate(documents):
        if (document["kind"], document["metadata"]["name"]) == (target["kind"], target["name"]):
            yield place


def _patch(documents: list[Document], patch: Document, folder: Path) -> None:
    text = patch.get("patch") or (folder / patch["path"]).read_text()
    places = list(select(documents, patch["target"]))
    if not places:
        raise ValueError(f"{folder}: nothing to patch is a {patch['target']}")
    for place in places:
        documents[place] = jsonpatch.JsonPatch(yaml.safe_load(text)).apply(documents[place])


def _rename_images(value: Any, images: list[Document]) -> None:
    """Containers, wherever they are."""
    if isinstance(value, list):
        for each in value:
            _rename_images(each, images)
    if isinstance(value, dict):
        for container in [*value.get("initContainers", []), *(value.get("containers") or [])]:
            for image in images:
                if container.get("image", "").partition(":")[0] == image["name"]:
                    container["image"] = f"{image['newName']}:{image['newTag']}"
        for each in value.values():
            _rename_images(each, images)


def _replace(documents: list[Document], replacement: Document) -> None:
    source = replacement["source"]
    (place,) = select(documents, source)
    value: Any = documents[place]
    for key in source["fieldPath"].split("."):
        value = value[key]
    for target in replacement["targets"]:
        for place in select(documents, target["select"]):
            for path in target["fieldPaths"]:
                *above, last = path.split(".")
                at = documents[place]
                for key in above:
                    at = at[key]
                at[last] = copy.deepcopy(value)
