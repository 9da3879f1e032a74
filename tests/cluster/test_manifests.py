"""Kubernetes manifests, without a cluster: schemas, pod security, and our command line."""

from __future__ import annotations

import copy
import functools
import json
import shlex
import shutil
import string
import subprocess
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from pydantic_settings import CliApp
from ray.serve import Application
from ray.serve.schema import ServeDeploySchema

from prompt_iml.cluster.fleet.serve import TOKEN
from prompt_iml.cluster.settings import EndpointSettings
from prompt_iml.pipeline.cli import commands
from tests.helpers.kustomize import Document, render

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "cluster" / "kubernetes"
SCHEMAS = ROOT.parent / "shared" / "schemas" / "kuberay"
OVERLAYS = ("dev", "production")
VERSION = "1.37"
MODES = {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"}  # an enum in no schema

with_schemas = pytest.mark.skipif(not SCHEMAS.is_dir(), reason=f"no schemas of KubeRay: {SCHEMAS}")


def rendered() -> list[Any]:
    return [
        pytest.param(document, id=f"{overlay}-{document['kind']}-{document['metadata']['name']}")
        for overlay in OVERLAYS
        for document in render(KUBERNETES / "overlays" / overlay)
    ]


DOCUMENTS = rendered()
RAY = [each for each in DOCUMENTS if each.values[0]["apiVersion"].startswith("ray.io/")]
SERVICES = [each for each in RAY if each.values[0]["kind"] == "RayService"]
CORE = [each for each in DOCUMENTS if each not in RAY]


def check_ray(document: Document) -> None:
    """Validate a document as the API server does, and its submission mode.

    Raises:
        jsonschema.ValidationError: the document is not valid.
    """
    validator(document["kind"]).validate(document)
    for mode in found(document, "submissionMode"):
        if mode not in MODES:
            raise jsonschema.ValidationError(f"submissionMode {mode}")


@functools.cache
def validator(kind: str) -> jsonschema.Draft202012Validator:
    """Return the validator of one of KubeRay's kinds."""
    schema = json.loads((SCHEMAS / f"{kind.lower()}s.json").read_text())
    return jsonschema.Draft202012Validator(closed(schema["openAPIV3Schema"]))


def closed(schema: Document) -> Document:
    """Return a schema that refuses unknown fields, which the API server drops.

    Fields with a default are not required.
    """
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    result = dict(schema)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            result[key] = closed(schema[key])
    if "properties" in schema:
        result["properties"] = {k: closed(v) for k, v in schema["properties"].items()}
        has_default = {k for k, v in schema["properties"].items() if "default" in v}
        result["required"] = sorted(set(schema.get("required", [])) - has_default)
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            result["additionalProperties"] = False
    return result


def found(value: Any, name: str) -> Iterator[Any]:
    """Yield every field with a name, at any depth."""
    if isinstance(value, dict):
        if name in value:
            yield value[name]
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from found(each, name)


def pods(value: Any) -> Iterator[Document]:
    """Yield every pod's spec, at any depth."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from pods(each)


@with_schemas
@pytest.mark.parametrize("document", RAY)
def test_ray_documents_match_the_schemas(document: Document) -> None:
    check_ray(document)


@pytest.mark.parametrize("document", CORE)
def test_core_documents_match_the_schemas(document: Document) -> None:
    kubernetes_validate.validate(document, VERSION, strict=True)


@with_schemas
@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.submissionMode", "K8sJob"),
        ("spec.ttlSeconds", 5),
        ("spec.backoffLimit", "three"),
        ("spec.rayClusterSpec.autoscalerOptions.version", "v3"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.idleTimeoutSecond", 5),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.securityContex", {}),
    ],
)
def test_a_typo_is_refused(path: str, value: object) -> None:
    document = copy.deepcopy(next(e.values[0] for e in RAY if "dev-RayJob" in str(e.id)))
    *above, last = path.split(".")
    at = document
    for key in above:
        at = at[int(key)] if key.isdecimal() else at[key]
    at[last] = value
    with pytest.raises(jsonschema.ValidationError):
        check_ray(document)


def test_a_typo_in_a_core_document_is_refused() -> None:
    account = next(e.values[0] for e in CORE if "ServiceAccount" in str(e.id))
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(account | {"automount": True}, VERSION, strict=True)


@pytest.mark.parametrize("document", RAY)
def test_pods_are_restricted(document: Document) -> None:
    """Pods meet the level `restricted` of Pod Security, and have a read-only root."""
    specs = list(pods(document))
    assert specs
    for pod in specs:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert all("hostPath" not in volume for volume in pod["volumes"])
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert security["readOnlyRootFilesystem"] is True


@pytest.mark.parametrize("document", RAY)
def test_mounts_have_volumes_and_images_a_tag(document: Document) -> None:
    for pod in pods(document):
        for container in pod["containers"]:
            mounts = {mount["name"] for mount in container["volumeMounts"]}
            assert mounts <= {volume["name"] for volume in pod["volumes"]}
            assert container["image"].rpartition(":")[2] in ("dev", "0.1.0")


@pytest.mark.parametrize("document", RAY)
def test_requests_equal_limits(document: Document) -> None:
    workers = [group["template"]["spec"] for groups in found(document, "workerGroupSpecs")
               for group in groups]  # fmt: skip
    assert workers
    for pod in workers:
        resources = pod["containers"][0]["resources"]
        assert resources["requests"] == resources["limits"]


@pytest.mark.parametrize("document", RAY)
def test_heads_take_no_work_and_workers_start_at_zero(document: Document) -> None:
    (head,) = found(document, "headGroupSpec")
    assert head["rayStartParams"]["num-cpus"] == "0"
    (groups,) = found(document, "workerGroupSpecs")
    grows = any(found(document, "enableInTreeAutoscaling"))
    assert all((group["minReplicas"] == 0) == grows for group in groups)
    assert len({group["groupName"] for group in groups}) == len(groups)


def test_spot_is_preferred() -> None:
    production = next(e.values[0] for e in RAY if "production-RayJob" in str(e.id))
    (groups,) = found(production, "workerGroupSpecs")
    by_name = {group["groupName"]: group["priority"] for group in groups}
    assert by_name["gpu-spot"] > by_name["gpu"]
    assert by_name["cpu-spot"] > by_name["cpu"]


@pytest.mark.parametrize("document", [e for e in RAY if list(found(e.values[0], "entrypoint"))])
def test_entrypoints_are_commands_of_ours(document: Document) -> None:
    """The command line's parser accepts them, with the variables of the ConfigMap."""
    bucket = yaml.safe_load((KUBERNETES / "base" / "bucket.yaml").read_text())["data"]
    (entrypoint,) = found(document, "entrypoint")
    program, name, *arguments = shlex.split(string.Template(entrypoint).substitute(bucket))
    assert program == "prompt-iml"
    settings = CliApp.run(commands()[name].settings, arguments, cli_exit_on_error=False)
    assert str(settings.model_dump()["output"]).startswith("s3://")


@pytest.mark.parametrize("document", SERVICES)
def test_a_service_runs_an_application_of_ours(document: Document) -> None:
    """Ray Serve accepts the config, and there is a worker for each replica."""
    config = ServeDeploySchema.model_validate(yaml.safe_load(document["spec"]["serveConfigV2"]))
    (deployed,) = config.applications
    module, _, name = deployed.import_path.partition(":")
    assert isinstance(getattr(import_module(module), name)(deployed.args), Application)
    settings = EndpointSettings(**deployed.args)
    (workers,) = document["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    assert settings.max_replicas == workers["maxReplicas"]
    assert settings.actor_cpus == int(container["resources"]["requests"]["cpu"])
    assert {"name": "serve", "containerPort": config.http_options.port} in container["ports"]


@pytest.mark.parametrize("document", SERVICES)
def test_a_service_has_a_port_and_a_token(document: Document) -> None:
    config = document["spec"]["rayClusterConfig"]
    (head,) = config["headGroupSpec"]["template"]["spec"]["containers"]
    assert "serve" in {port["name"] for port in head["ports"]}  # or there is no Service
    (worker,) = config["workerGroupSpecs"][0]["template"]["spec"]["containers"]
    assert worker["readinessProbe"]["httpGet"]["port"] == "serve"
    assert [each["name"] for each in worker["env"]] == [TOKEN]


def test_a_gpu_pod_first_builds_its_engine() -> None:
    production = next(e.values[0] for e in RAY if "production-RayJob" in str(e.id))
    builders = [c for each in found(production, "initContainers") for c in each]
    assert len(builders) == 2
    for program, name, *arguments in (builder["command"] for builder in builders):
        assert program == "prompt-iml"
        CliApp.run(commands()[name].settings, arguments, cli_exit_on_error=False)


@pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kustomize_renders_the_same(overlay: str) -> None:
    command = ["kubectl", "kustomize", str(KUBERNETES / "overlays" / overlay)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    theirs = list(yaml.safe_load_all(text))
    ours = render(KUBERNETES / "overlays" / overlay)
    order = lambda each: (each["kind"], each["metadata"]["name"])  # noqa: E731
    assert sorted(theirs, key=order) == sorted(ours, key=order)
