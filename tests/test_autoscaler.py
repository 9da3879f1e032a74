"""A scan on Ray's own autoscaler: from no node to as many as there may be, and back."""

from __future__ import annotations

import io
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

from pipeline.run import Json
from tests.bench.null_model import write_null_model
from tests.heads import environment, free_ports, ray_head
from tests.processes import processes_below

pytestmark = pytest.mark.timeout(600)
IMAGES, UNITS, NODES = 900, 300, 2
NO_STEPS = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
    "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files",
    "rsync_exclude", "rsync_filter",
)  # fmt: skip
FAKE_HEAD = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"


def cluster_config(port: int) -> Json:
    """Nodes of one CPU and one GPU, none at first; Ray counts GPUs and does not look for them."""
    return {
        "cluster_name": "test",
        "max_workers": NODES,
        "idle_timeout_minutes": 0.05,
        "upscaling_speed": 1.0,
        "head_node_type": "head",
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD,
            "gcs_address": f"{get_node_ip_address()}:{port}",
        },
        "available_node_types": {
            "head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "gpu": {
                "resources": {"CPU": 1, "GPU": 1, "object_store_memory": 80_000_000},
                "node_config": {},
                "min_workers": 0,
                "max_workers": NODES,
            },
        },
        "auth": {},
        "docker": {},
        "file_mounts": {},
        **{key: [] for key in NO_STEPS},
        "file_mounts_sync_continuously": False,
    }


def nodes() -> list[int]:
    """Process ids of the raylets that the autoscaler has started."""
    found = processes_below(os.getpid(), "raylet/raylet")
    return [p for p in found if b"--head" not in Path(f"/proc/{p}/cmdline").read_bytes()]


@dataclass(frozen=True)
class Outcome:
    """What became of the scan.

    Attributes:
        before, most, after: nodes beside the head.
    """

    before: int
    most: int
    after: int
    summary: Json
    output: Path


def wait_until(done: Callable[[], bool], what: str, driver: subprocess.Popen[str]) -> None:
    for _ in range(1200):
        if done():
            return
        assert driver.poll() in (None, 0), driver.stderr and driver.stderr.read()
        time.sleep(0.1)
    raise TimeoutError(what)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    folder = tmp_path_factory.mktemp("autoscaler")
    source, output = folder / "in", folder / "out"
    source.mkdir()
    for number in range(IMAGES):
        sink = io.BytesIO()
        Image.new("RGB", (64, 64), (number % 256, number // 256, 0)).save(sink, "PNG")
        (source / f"{number:04}.png").write_bytes(sink.getvalue())
    model = write_null_model(folder / "model")
    ports = free_ports()
    (folder / "cluster.json").write_text(json.dumps(cluster_config(ports["port"])))
    env = environment(
        RAY_FAKE_CLUSTER="1",
        RAY_enable_autoscaler_v2="1",
        RAY_CLOUD_INSTANCE_ID=FAKE_HEAD,
        RAY_OVERRIDE_NODE_ID_FOR_TESTING=FAKE_HEAD,
        AUTOSCALER_UPDATE_INTERVAL_S="1",
    )
    command = [
        sys.executable, "-m", "pipeline.cli", "scan", str(source), f"--output={output}",
        f"--model={model}", f"--address=127.0.0.1:{ports['port']}", "--actor-gpus=1",
        f"--min-actors={NODES}", f"--max-actors={NODES}", f"--images-per-unit={IMAGES // UNITS}",
    ]  # fmt: skip
    flags = ["--num-cpus=0", f"--autoscaling-config={folder / 'cluster.json'}"]
    with ray_head(env, *flags, ports=ports):
        before = len(nodes())
        scanning = environment()
        with subprocess.Popen(
            command, env=scanning, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as driver:
            wait_until(lambda: len(nodes()) == NODES, "no nodes came", driver)
            results = output / "results"
            parts = lambda: len(list(results.glob("*"))) if results.exists() else 0  # noqa: E731
            wait_until(lambda: parts() >= 20, "no parts came", driver)
            assert parts() < UNITS
            most = len(nodes())
            os.kill(nodes()[0], signal.SIGKILL)
            told, errors = driver.communicate()
            assert driver.returncode == 0, errors
        wait_until(lambda: not nodes(), "the nodes stay", driver)
        yield Outcome(before, most, len(nodes()), json.loads(told.splitlines()[-1]), output)


def test_it_grows_from_nothing_and_shrinks_to_nothing(outcome: Outcome) -> None:
    assert (outcome.before, outcome.most, outcome.after) == (0, NODES, 0)


def test_the_table_is_exact_though_a_node_was_taken(outcome: Outcome) -> None:
    table = ds.dataset(outcome.output / "results").to_table(columns=["image_id", "status"])
    assert table.num_rows == len(set(table["image_id"].to_pylist())) == IMAGES
    assert set(table["status"].to_pylist()) == {"ok"}
    assert outcome.summary["listed"] == outcome.summary["ok"] == IMAGES
