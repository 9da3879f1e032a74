"""`prompt-iml serve` over HTTP, with good and bad requests."""

from __future__ import annotations

import json
import signal
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPConnection
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from prompt_iml.cluster.fleet.limits import CONNECTIONS
from prompt_iml.cluster.fleet.serve import ONGOING, Endpoint, application, endpoint_spec
from prompt_iml.cluster.settings import EndpointSettings
from prompt_iml.engine.errors import UsageError
from prompt_iml.pipeline.cli import INTERRUPTED, main
from prompt_iml.pipeline.demo.photographs import generate_set
from prompt_iml.pipeline.registry.registry import PromptSetRef
from prompt_iml.pipeline.run.folder import Json
from prompt_iml.pipeline.run.schema import RowWriter
from prompt_iml.pipeline.scan.scanner import RowMaker
from prompt_iml.pipeline.units import Sample
from tests.helpers.endpoint import serving
from tests.helpers.ports import free_port
from tests.helpers.processes import assert_ends, begin, wait_for_process

pytestmark = pytest.mark.timeout(600)
ROOT = Path(__file__).parents[3]
TOKEN = "of-a-test"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
MAX_BYTES = 1 << 20
MAX_QUEUED = 8
TIMES = {"scanned_at", "decode_ms", "infer_ms"}


@dataclass(frozen=True)
class Server:
    """A running server."""

    port: int

    def ask(
        self,
        body: bytes,
        headers: dict[str, str] = BEARER,
        *,
        method: str = "POST",
        path: str = "/",
    ) -> tuple[int, Json]:
        """Return the status and the JSON of a response."""
        line = HTTPConnection("127.0.0.1", self.port, timeout=120)
        line.request(method, path, body, headers)
        answer = line.getresponse()
        body = answer.read()
        line.close()
        is_json = answer.headers.get_content_type() == "application/json"
        return answer.status, json.loads(body) if is_json else {}


# The faults of tests/chaos, in the process that decodes: in all of Ray's they would take a minute.
PLANT = f"""
import sys
if "prompt_iml.cluster.fleet.image_process" in sys.orig_argv:
    exec(open("{ROOT}/tests/chaos/plant/sitecustomize.py").read())
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serve the packaged model, with poison planted in its decoder."""
    plant = tmp_path_factory.mktemp("plant")
    (plant / "sitecustomize.py").write_text(PLANT)
    limits = [f"--max-bytes={MAX_BYTES}", f"--max-queued={MAX_QUEUED}"]
    environment = {"PYTHONPATH": f"{plant}:{ROOT}", "PROMPT_IML_SERVE_TOKEN": TOKEN}
    with serving(*limits, **environment) as port:
        yield Server(port)


@pytest.fixture(scope="module")
def forged() -> bytes:
    """Return a forgery in which the model finds a region; in the two before it finds none."""
    forgeries = (image.data for image in generate_set() if image.mask is not None)
    return next(islice(forgeries, 2, None))


def test_a_response_equals_the_row_of_a_scan(server: Server, forged: bytes) -> None:
    status, result = server.ask(forged)
    maker = RowMaker(endpoint_spec(EndpointSettings()))
    (row,) = maker.rows([Sample("/there/forged.jpg", data=forged)])
    writer = RowWriter("unit", "run")
    writer.add(row | maker.provenance)
    (expected,) = pq.read_table(pa.BufferReader(writer.close())).to_pylist()
    assert (status, result["status"], bool(result["regions"])) == (200, "ok", True)
    assert result.pop("mask_rle").encode() == expected.pop("mask_rle")
    numbers = result.keys() - TIMES
    assert {name: result[name] for name in numbers} == {name: expected[name] for name in numbers}
    left_out = {"image_id", "uri", "member", "content_id", "run_id", "heatmap_png"}
    assert expected.keys() - result.keys() == left_out


@pytest.mark.parametrize(
    ("body", "code"),
    [(b"", "empty"), (b"no image", "unsupported"), (b"\xff\xd8\xff\xe0", "truncated")],
)
def test_bad_images_have_an_error_code(body: bytes, code: str, server: Server) -> None:
    status, result = server.ask(body)
    assert (status, result["status"], result["error_code"]) == (422, "failed", code)
    assert result["size_bytes"] == len(body)


def test_a_large_content_length_is_refused(server: Server) -> None:
    line = HTTPConnection("127.0.0.1", server.port, timeout=60)
    line.putrequest("POST", "/")
    for name, value in {**BEARER, "Content-Length": str(10**12)}.items():
        line.putheader(name, value)
    line.endheaders()  # and not a byte of it
    answer = line.getresponse()
    assert (answer.status, json.load(answer)["error_code"]) == (413, "too_large")
    line.close()


def test_a_large_chunked_body_is_refused(server: Server) -> None:
    line = HTTPConnection("127.0.0.1", server.port, timeout=60)
    line.request("POST", "/", iter([bytes(MAX_BYTES), b"x"]), BEARER)
    assert line.getresponse().status == 413
    line.close()


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer of-another"}])
def test_requests_without_the_token_are_refused(headers: dict[str, str], server: Server) -> None:
    status, result = server.ask(b"", headers)
    assert (status, set(result)) == (401, {"error_message"})


def test_other_paths_and_methods_are_refused(server: Server) -> None:
    assert server.ask(b"", method="GET")[0] == 405
    assert server.ask(b"", path="/other")[0] == 404
    assert server.ask(b"", {}, method="GET", path="/-/healthz")[0] == 200
    assert server.ask(b"", {}, method="GET", path="/openapi.json")[0] == 401


def test_the_whole_interface_is_served(server: Server, forged: bytes) -> None:
    status, document = server.ask(b"", method="GET", path="/openapi.json")
    assert (status, set(document["paths"])) == (200, {"/", "/v1/scan", "/-/healthz"})
    form = b"--x\r\nContent-Disposition: form-data; name=images; filename=a\r\n\r\n%b\r\n--x--"
    kind = {"Content-Type": "multipart/form-data; boundary=x", "Idempotency-Key": "form"}
    status, answer = server.ask(form % forged, BEARER | kind, path="/v1/scan?overlay=true")
    assert (status, answer["images"][0]["name"], answer["images"][0]["status"]) == (200, "a", "ok")
    assert answer["images"][0]["overlay_png"]
    assert server.ask(form % b"other", BEARER | kind, path="/v1/scan")[0] == 409
    accept = BEARER | {"Accept": "image/png"}
    assert server.ask(forged, accept, path="/v1/scan") == (200, {})  # no JSON


def test_concurrent_requests_get_their_own_rows(server: Server, forged: bytes) -> None:
    bodies = [forged, b"no image", forged, b""]
    with ThreadPoolExecutor(len(bodies)) as clients:
        answers = list(clients.map(server.ask, bodies))
    assert [status for status, _ in answers] == [200, 422, 200, 422]
    assert answers[0][1]["score"] == answers[2][1]["score"]


def test_an_image_that_kills_its_decoder_costs_its_own_row(server: Server, forged: bytes) -> None:
    bodies = [forged, forged + b"POISON:segfault", forged]
    with ThreadPoolExecutor(len(bodies)) as clients:
        answers = list(clients.map(server.ask, bodies))
    assert [status for status, _ in answers] == [200, 422, 200]
    dead = answers[1][1]
    assert (dead["error_code"], dead["error_stage"]) == ("crashed", "decode")
    assert dead["model"] == answers[0][1]["model"]


def test_strangers_and_slow_clients_keep_nobody_out(server: Server, forged: bytes) -> None:
    """More silent connections and half bodies than the proxy, and the replica, have places."""
    head = f"POST / HTTP/1.1\r\nHost: x\r\nAuthorization: bearer {TOKEN}\r\n"
    with ExitStack() as opened:
        clients = [
            opened.enter_context(socket.create_connection(("127.0.0.1", server.port), 60))
            for _ in range(CONNECTIONS + 100)
        ]
        for client in clients[-ONGOING - MAX_QUEUED - 20 :]:
            client.sendall(f"{head}Content-Length: 9\r\n\r\nhalf".encode())
        assert server.ask(forged, {"Authorization": f"bearer {TOKEN}"})[0] == 200
        assert clients[0].recv(1) == b""  # the one that waited longest


def test_clients_do_not_steer_serve(server: Server) -> None:
    assert server.ask(b"", BEARER | {"X-Request-Timeout-Seconds": "1e-9"})[0] == 422


def test_sigterm_while_it_starts_ends_it_as_sigint_does() -> None:
    with begin("serve", "--address=local", f"--port={free_port()}") as starting:
        wait_for_process(starting, "raylet/raylet")
        line = "interrupted: the same command begins again"
        assert_ends(starting, signal.SIGTERM, INTERRUPTED, line)


def test_without_the_required_token_no_replica_starts() -> None:
    with pytest.raises(UsageError, match="PROMPT_IML_SERVE_TOKEN"):
        Endpoint(endpoint_spec(EndpointSettings()), EndpointSettings(require_token=True))


def test_prompts_are_looked_up_at_deployment(tmp_path: Path) -> None:
    spec = endpoint_spec(EndpointSettings(registry=str(tmp_path)))
    assert spec.prompt_set == PromptSetRef(f"file://{tmp_path}", None)  # nothing is promoted
    with pytest.raises(UsageError, match="no prompt set 12345678"):
        endpoint_spec(EndpointSettings(registry=str(tmp_path), prompts="12345678"))


def test_a_typo_in_a_serve_config_is_refused() -> None:
    with pytest.raises(ValidationError, match="modle"):
        application({"modle": "x"})


def test_a_missing_extra_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "prompt_iml.cluster.fleet.serve", None)
    assert main(["serve"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("prompt-iml serve: ")
    assert line.endswith(": pip install 'prompt-iml[serve]'")


def test_bad_settings_are_refused_before_ray_is_started(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--model=nobody"]) == 2
    assert "no model 'nobody'" in capsys.readouterr().err
