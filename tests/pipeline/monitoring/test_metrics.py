"""Metrics and log of a scan: exact counts, exported under the names that dashboards use."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from prompt_iml.pipeline.monitoring import metrics
from prompt_iml.pipeline.monitoring.meter import Meter
from tests.bench.null_model import write_null_model
from tests.helpers.heads import environment, ray_head, short_folder
from tests.helpers.listener import listener

pytestmark = pytest.mark.timeout(600)
MONITORING = Path(__file__).parents[3] / "cluster" / "kubernetes" / "monitoring"
NAME = re.compile(r"\bray_(prompt_iml_\w+)")
OURS = {value for name, value in vars(metrics).items() if name.isupper()}


def test_time_until_each_is_counted() -> None:
    meter = Meter()
    assert list(meter.timed("fetch", (time.sleep(0.01) for _ in range(3)))) == [None] * 3
    assert 0.03 <= meter.seconds["fetch"] < 1


@dataclass(frozen=True)
class Scan:
    """Metrics that Prometheus would read at the end of a scan, and the log of its driver and
    workers; the driver also repeats lines of the workers. What came to a proxy of the driver."""

    metrics: str
    driver: str
    workers: str
    proxied: list[bytes]


@pytest.fixture(scope="module")
def scraped(observed: Scan) -> str:
    return observed.metrics


@pytest.fixture(scope="module")
def observed(photographs: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Scan:
    """Scan photographs and a broken one."""
    folder = tmp_path_factory.mktemp("metrics")
    (folder / "in").mkdir()
    for name, data in {**photographs, "broken.jpg": photographs["rocket.jpg"][:2000]}.items():
        (folder / "in" / name).write_bytes(data)
    model, env = write_null_model(folder / "model"), environment()
    with (
        short_folder() as sessions,
        ray_head(env, "--num-cpus=2", folder=sessions) as ports,
        listener() as (proxy, proxied),
    ):
        command = [
            sys.executable, "-m", "prompt_iml.pipeline.cli", "scan", str(folder / "in"),
            "--run-id=metered", f"--output={folder / 'out'}", f"--model={model}", "--max-actors=1",
            "--max-failure-rate=1", "--log=json", f"--address=127.0.0.1:{ports['port']}",
        ]  # fmt: skip
        proxies = {f"{of}_proxy": proxy for of in ("http", "https", "grpc")}
        done = subprocess.run(command, env=env | proxies, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        url = f"http://127.0.0.1:{ports['metrics-export-port']}/metrics"
        files = sessions.glob("session_latest/logs/worker-*.err")
        log = "".join(file.read_text() for file in files)
        return Scan(wait_for_metrics(url), done.stderr, log, proxied)


def wait_for_metrics(url: str) -> str:
    """Return the metrics once Ray's agent, which exports every few seconds, has the scan's."""
    text = ""
    for _ in range(60):
        with urllib.request.urlopen(url) as response:
            text = response.read().decode()
        if "prompt_iml_images" in text:
            break
        time.sleep(1)
    return text


def value(text: str, name: str, **tags: str) -> float:
    """Return the sum of the samples with these tags."""
    lines = [line for line in text.splitlines() if line.startswith(f"ray_{name}{{")]
    chosen = [line for line in lines if all(f'{k}="{v}"' in line for k, v in tags.items())]
    return sum(float(line.rpartition(" ")[2]) for line in chosen)


def test_every_image_is_counted_by_status(scraped: str, photographs: dict[str, bytes]) -> None:
    images = next(name for name in NAME.findall(scraped) if name.startswith(metrics.IMAGES))
    assert value(scraped, images, run="metered", status="ok") == len(photographs)
    assert value(scraped, images, run="metered", code="truncated") == 1


def test_every_stage_takes_time(scraped: str) -> None:
    for stage in ("fetch", "decode", "wait", "infer", "commit"):
        assert re.search(rf'ray_{metrics.SECONDS}\w*{{[^}}]*stage="{stage}"', scraped), stage


def test_actors_log_their_units(observed: Scan, photographs: dict[str, bytes]) -> None:
    (done,) = [line for line in json_lines(observed.workers) if line["message"] == "done"]
    assert (done["run"], done["rows"]) == ("metered", len(photographs) + 1)
    assert {line["run"] for line in json_lines(observed.driver + observed.workers)} == {"metered"}


def test_a_driver_asks_no_proxy_for_its_own_machine(observed: Scan) -> None:
    """It would get the token of the cluster."""
    assert observed.proxied == []


def json_lines(text: str) -> list[dict[str, Any]]:
    """Parse the objects in a log; Ray prefixes each line with its process."""
    return [json.loads(line[line.index("{") :]) for line in text.splitlines() if "{" in line]


def used_names() -> set[str]:
    """Return the names of metrics in dashboards and alerts."""
    texts = [path.read_text() for path in MONITORING.iterdir()]
    return {name for text in texts for name in NAME.findall(text)}


def test_dashboards_and_alerts_use_exported_metrics(scraped: str) -> None:
    assert used_names() <= set(NAME.findall(scraped))
    assert len(used_names()) == len(OURS)


def test_the_dashboard_can_be_loaded() -> None:
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    assert all(panel["targets"] for panel in dashboard["panels"])
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_alerts_have_descriptions() -> None:
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text())
    for rule in rules["spec"]["groups"][0]["rules"]:
        assert rule["annotations"]["description"]
