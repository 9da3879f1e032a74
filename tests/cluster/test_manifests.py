"""Kubernetes manifests, without a cluster: schemas, pod security, and our command line."""

from __future__ import annotations

import copy
import dataclasses
import functools
import ipaddress
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

from prompt_iml.cluster.fleet.limits import CALLBACK, TOKEN
from prompt_iml.cluster.settings import EndpointSettings
from prompt_iml.pipeline.cli import commands
from prompt_iml.pipeline.scan.isolated import BYTES_PER_PIXEL, SPARE_BYTES
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


@pytest.mark.parametrize("document", [e for e in RAY if "RayJob" in str(e.id)])
def test_the_log_of_a_scan_names_its_units(document: Document) -> None:
    """The alert of a stuck unit says so; actors log units as JSON only."""
    assert "--log json" in document["spec"]["entrypoint"]


@pytest.mark.parametrize("document", [e for e in RAY if str(e.id).startswith("dev-")])
def test_in_dev_all_of_ray_has_the_keys_of_the_bucket_and_fits(document: Document) -> None:
    (head,), (workers,) = found(document, "headGroupSpec"), found(document, "workerGroupSpecs")
    for group in (head, *workers):
        container = group["template"]["spec"]["containers"][0]
        assert {"secretRef": {"name": "bucket-keys"}} in container["envFrom"]
        assert int(container["resources"]["limits"]["memory"].removesuffix("Gi")) <= 4


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
def test_no_proxy_or_replica_is_without_token_and_limits(document: Document) -> None:
    (application,) = yaml.safe_load(document["spec"]["serveConfigV2"])["applications"]
    assert application["args"]["require_token"] is True
    for pod in pods(document):
        for container in pod["containers"]:
            token, *others = container["env"]
            secret = {"secretKeyRef": {"name": "serve-token", "key": "token"}}
            assert token == {"name": TOKEN, "valueFrom": secret}  # not optional: or no pod
            assert {each["name"]: each["value"] for each in others} == CALLBACK


def test_a_pod_of_the_endpoint_has_room_for_the_process_that_decodes() -> None:
    """Kubernetes would end the pod, where the process alone should end."""
    service = next(e.values[0] for e in SERVICES if "production" in str(e.id))
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    (workers,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    memory = int(container["resources"]["limits"]["memory"].removesuffix("Gi")) << 30
    max_pixels = EndpointSettings(**application["args"]).max_pixels
    assert memory >= SPARE_BYTES + BYTES_PER_PIXEL * max_pixels + (2 << 30)


@pytest.mark.parametrize("document", SERVICES)
def test_a_service_has_a_port(document: Document) -> None:
    config = document["spec"]["rayClusterConfig"]
    (head,) = config["headGroupSpec"]["template"]["spec"]["containers"]
    assert "serve" in {port["name"] for port in head["ports"]}  # or there is no Service
    (worker,) = config["workerGroupSpecs"][0]["template"]["spec"]["containers"]
    assert worker["readinessProbe"]["httpGet"]["port"] == "serve"


@dataclasses.dataclass(frozen=True)
class Peer:
    """Pod of a namespace, or an address outside of the cluster."""

    address: str | None = None
    namespace: str = ""
    labels: Document = dataclasses.field(default_factory=dict)
    namespace_labels: Document = dataclasses.field(default_factory=dict)

    def is_meant(self, place: Document) -> bool:
        """Return whether an entry of `to` or `from` in a network policy names this peer."""
        if self.address:
            block = place.get("ipBlock", {"cidr": "0.0.0.0/32"})
            within = [ipaddress.ip_network(each) for each in block.get("except", [])]
            address = ipaddress.ip_address(self.address)
            return address in ipaddress.ip_network(block["cidr"]) and not any(
                address in each for each in within
            )
        if "ipBlock" in place:
            return False
        namespace = {"kubernetes.io/metadata.name": self.namespace} | self.namespace_labels
        wanted = place.get("namespaceSelector", {"matchLabels": {NAME: OURS}})
        return selects(wanted, namespace) and selects(place.get("podSelector", {}), self.labels)


NAME, OURS = "kubernetes.io/metadata.name", "prompt-iml"
US = {"app": "prompt-iml"}
HEAD, WORKER = US | {"ray.io/node-type": "head"}, US | {"ray.io/node-type": "worker"}
REPLICA = WORKER | {"ray.io/serve": "true"}
OPERATOR = {"app.kubernetes.io/name": "kuberay-operator"}
DNS = Peer(namespace="kube-system", labels={"k8s-app": "kube-dns"})
MINIO, STORE = Peer(namespace="minio"), Peer("52.216.0.1")
ANYBODY, METADATA = Peer(namespace="default"), Peer("169.254.169.254")


def selects(selector: Document, labels: Document) -> bool:
    assert selector.keys() <= {"matchLabels"}
    return selector.get("matchLabels", {}).items() <= labels.items()


def passes(overlay: str, way: str, pod: Document, peer: Peer, port: int | str) -> bool:
    """Return whether the network policies let a pod and a peer talk, by `ingress` or `egress`."""
    policies = [
        each["spec"]
        for each in render(KUBERNETES / "overlays" / overlay)
        if each["kind"] == "NetworkPolicy" and selects(each["spec"]["podSelector"], pod)
    ]
    ours = [each for each in policies if way.capitalize() in each["policyTypes"]]
    assert ours, "a pod without a policy is open"
    return any(
        any(peer.is_meant(place) for place in rule["to" if way == "egress" else "from"])
        and port in [each["port"] for each in rule.get("ports", [{"port": port}])]
        for each in ours
        for rule in each.get(way, [])
    )


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("pod", [US, HEAD, WORKER, REPLICA], ids=str)
def test_nothing_leaves_but_to_dns_the_store_and_ourselves(pod: Document, overlay: str) -> None:
    leaves = functools.partial(passes, overlay, "egress", pod)
    store, port, other = {"dev": (MINIO, 9000, STORE), "production": (STORE, 443, MINIO)}[overlay]
    assert leaves(DNS, 53)
    assert leaves(store, port)
    assert leaves(Peer(namespace=OURS, labels=HEAD), 6379)
    assert leaves(Peer(namespace=OURS, labels=WORKER), 12345)
    assert not any(leaves(METADATA, port) for port in (53, 80, 443, 9000))
    assert not any(leaves(ANYBODY, port) for port in (53, 80, 443, 8000, 9000))
    assert not any(leaves(Peer("52.216.0.1"), port) for port in (22, 53, 80, 8443))
    assert not leaves(other, 9000)
    # A head's autoscaler asks Kubernetes, which no policy can name.
    assert leaves(Peer("10.96.0.1"), 443) == (pod == HEAD)
    assert leaves(STORE, 443) == (overlay == "production" or pod == HEAD)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_operator_is_named_by_its_namespace(overlay: str) -> None:
    enters = functools.partial(passes, overlay, "ingress", HEAD)
    assert enters(Peer(namespace="ray-system", labels=OPERATOR), 8265)
    assert not enters(Peer(namespace="ray-system", labels=OPERATOR), 6379)
    assert not enters(Peer(namespace="default", labels=OPERATOR), 8265)
    assert not enters(Peer(namespace="ray-system"), 8265)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_clients_reach_the_endpoint_and_nothing_else(overlay: str) -> None:
    client = Peer(namespace="web", namespace_labels={"prompt-iml-client": "true"})
    assert passes(overlay, "ingress", REPLICA, client, "serve")
    assert not passes(overlay, "ingress", REPLICA, client, 6379)
    assert not passes(overlay, "ingress", HEAD, client, "serve")
    assert not passes(overlay, "ingress", REPLICA, ANYBODY, "serve")
    assert not passes(overlay, "ingress", {}, Peer(namespace=OURS), 80)


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
