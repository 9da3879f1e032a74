"""Scan on Ray's own autoscaler: from no node to the maximum, and back.

Nodes are raylets of this machine, started and ended by the provider that Ray tests itself with.
On the way one node is drained, as a pod that is deleted, and one is killed, as a spot node that
is taken away without a word.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.dataset as ds
import pytest
from PIL import Image
from ray.util import get_node_ip_address

from prompt_iml.pipeline.run.folder import Json
from tests.helpers.heads import environment, free_ports, ray_head
from tests.helpers.processes import processes_below

pytestmark = pytest.mark.timeout(600)
IMAGES, NODES = 400, 2
FAKE_HEAD = "f" * 51 + "00000"
LISTS = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
    "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files",
    "rsync_exclude", "rsync_filter",
)  # fmt: skip
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"


def cluster_config(port: int) -> Json:
    """Nodes of one CPU and one GPU, none at first; Ray counts GPUs and does not look for them."""
    return {
        "cluster_name": "test",
        "max_workers": NODES,
        "idle_timeout_minutes": 0.05,
        **{key: [] for key in LISTS},
        "file_mounts": {},
        "provider": {
            "type": "external",
            "module": PROVIDER,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD,
            "gcs_address": f"{get_node_ip_address()}:{port}",
        },
        "head_node_type": "ray.head.default",  # the provider calls it so
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "gpu": {
                "resources": {"CPU": 1, "GPU": 1, "object_store_memory": 80_000_000},
                "node_config": {},
                "min_workers": 0,
                "max_workers": NODES,
            },
        },
    }


def nodes() -> dict[str, int]:
    """Return the process ids of the raylets that the autoscaler has started, by node."""
    pids = processes_below(os.getpid(), "raylet/raylet")
    found = {node_id(pid): pid for pid in pids}
    return {node: pid for node, pid in found.items() if node and node != FAKE_HEAD}


def node_id(raylet: int) -> str:
    try:
        variables = Path(f"/proc/{raylet}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    name = b"RAY_OVERRIDE_NODE_ID_FOR_TESTING="
    return next(
        (line.removeprefix(name).decode() for line in variables if line.startswith(name)), ""
    )


@dataclass(frozen=True)
class Scan:
    """Running scan, with its log and its output."""

    driver: subprocess.Popen[str]
    log: Path
    output: Path

    def parts(self) -> int:
        results = self.output / "results"
        return len(list(results.glob("*"))) if results.exists() else 0

    def lines(self, message: str) -> list[Json]:
        """Return the log lines of its actors with this message, without duplicates from nodes."""
        lines = self.log.read_text().splitlines()
        objects = {line[line.index("{") :] for line in lines if '{"time"' in line}
        return [line for line in map(json.loads, objects) if line["message"] == message]

    def wait(self, done: Callable[[], bool], what: str) -> None:
        for _ in range(1200):
            if done():
                return
            assert self.driver.poll() in (None, 0), self.log.read_text()
            time.sleep(0.1)
        raise TimeoutError(f"{what}: {self.log.read_text()}")


@dataclass(frozen=True)
class Outcome:
    """Outcome of the scan.

    Attributes:
        before, most, after: nodes beside the head.
        drained: units begun until another node was in the drained one's place, and parts there
            were then. The node itself stays while others read what it holds, or until its deadline.
    """

    before: int
    most: int
    after: int
    drained: tuple[list[str], int]
    summary: Json
    output: Path


def write_images(folder: Path) -> None:
    """Write images of small files and long computation, so that a node is drained in mid-scan."""
    folder.mkdir()
    for number in range(IMAGES):
        colour = number % 256, number // 256, 128
        Image.new("RGB", (512, 512), colour).save(folder / f"{number:04}.png")


def drain(node: str, address: str) -> None:
    reason = ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=the pod is deleted"]
    command = ["ray", "drain-node", f"--address={address}", f"--node-id={node}", *reason]
    deadline = "--deadline-remaining-seconds=100"
    subprocess.run([*command, deadline], env=environment(), check=True, capture_output=True)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    folder = tmp_path_factory.mktemp("autoscaler")
    write_images(folder / "in")
    ports = free_ports()
    address = f"{get_node_ip_address()}:{ports['port']}"
    (folder / "cluster.json").write_text(json.dumps(cluster_config(ports["port"])))
    env = environment(
        RAY_FAKE_CLUSTER="1",
        RAY_enable_autoscaler_v2="1",
        RAY_CLOUD_INSTANCE_ID=FAKE_HEAD,
        RAY_OVERRIDE_NODE_ID_FOR_TESTING=FAKE_HEAD,
        AUTOSCALER_UPDATE_INTERVAL_S="1",
        RAY_DEDUP_LOGS="0",
    )
    command = [
        sys.executable, "-m", "prompt_iml.pipeline.cli", "scan", str(folder / "in"),
        f"--output={folder / 'out'}", f"--address={address}", "--actor-gpus=1", "--log=json",
        f"--min-actors={NODES}", f"--max-actors={NODES}", "--images-per-unit=2",
    ]  # fmt: skip
    flags = ["--num-cpus=0", f"--autoscaling-config={folder / 'cluster.json'}"]
    with ray_head(env, *flags, ports=ports), (folder / "log").open("w") as log:
        before = len(nodes())
        driver = subprocess.Popen(
            command,
            env=environment(RAY_DEDUP_LOGS="0"),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        scan = Scan(driver, folder / "log", folder / "out")
        scan.wait(lambda: scan.parts() >= 5 and len(nodes()) == NODES, "no parts from all nodes")
        most = nodes()
        first, second = most
        drain(first, address)
        scan.wait(lambda: bool(scan.lines("drained")), "the drained node scans on")
        scan.wait(lambda: len(nodes().keys() - {first}) == NODES, "no node in its place")
        drained = [line["unit"] for line in scan.lines("begun")], scan.parts()
        os.kill(nodes()[second], signal.SIGKILL)
        summary, _ = driver.communicate()
        assert driver.returncode == 0, scan.log.read_text()
        scan.wait(lambda: not nodes(), "the nodes stay")
        last = json.loads(summary.splitlines()[-1])
        yield Outcome(before, len(most), len(nodes()), drained, last, folder / "out")


def test_it_grows_from_nothing_and_shrinks_to_nothing(outcome: Outcome) -> None:
    assert (outcome.before, outcome.most, outcome.after) == (0, NODES, 0)


def test_a_drained_node_finishes_its_unit(outcome: Outcome) -> None:
    begun, parts = outcome.drained
    assert len(begun) == len(set(begun))
    assert 0 < parts < IMAGES / 2


def test_the_table_is_exact_though_nodes_were_taken(outcome: Outcome) -> None:
    table = ds.dataset(outcome.output / "results").to_table(columns=["image_id", "status"])
    assert table.num_rows == len(set(table["image_id"].to_pylist())) == IMAGES
    assert set(table["status"].to_pylist()) == {"ok"}
    assert outcome.summary["listed"] == outcome.summary["ok"] == IMAGES
