"""The endpoint's interface on a real socket and engine, without Ray: forms, overlays, keys."""

from __future__ import annotations

import base64
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import openapi_spec_validator
import pytest
import requests
from PIL import Image
from starlette.testclient import TestClient

from prompt_iml.cluster.fleet.api import Api, application
from prompt_iml.cluster.fleet.https import Fetcher
from prompt_iml.cluster.fleet.schemas import EXAMPLE, Error, Row, Rows
from prompt_iml.cluster.fleet.serve import Endpoint, endpoint_spec
from prompt_iml.cluster.settings import EndpointSettings
from prompt_iml.engine.errors import FetchTimeout, ImageError, UsageError
from prompt_iml.pipeline.demo.photographs import generate_set
from tests.helpers.endpoint import listening
from tests.helpers.pages import blocks, page

ATTACK = Path(__file__).parent / "attack"
TOKEN = "of-a-test"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
SETTINGS = EndpointSettings(max_bytes=1 << 20, max_images=3, require_token=True)


class Client:
    """Client of a running replica."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def post(self, path: str = "/v1/scan", **options: Any) -> requests.Response:
        headers = BEARER | options.pop("headers", {})
        return requests.post(self.url + path, headers=headers, timeout=60, **options)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PROMPT_IML_SERVE_TOKEN", TOKEN)
        endpoint = Endpoint(endpoint_spec(SETTINGS), SETTINGS)
    with listening(endpoint.__serve_build_asgi_app__()) as port:
        yield Client(port)
    endpoint._process.close()


@pytest.fixture(scope="module")
def forged() -> bytes:
    """Return a forgery in which the model finds a region."""
    forgeries = (image.data for image in generate_set() if image.mask is not None)
    return next(islice(forgeries, 2, None))


def small(colour: str) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(sink, "PNG")
    return sink.getvalue()


def files(*bodies: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("images", (f"{number}.jpg", body)) for number, body in enumerate(bodies)]


TIMES = ("decode_ms", "infer_ms", "scanned_at")


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in TIMES}


def test_a_form_has_an_answer_for_each_picture_in_order(client: Client, forged: bytes) -> None:
    alone = client.post(data=forged).json()
    answer = client.post(files=files(forged, b"no image", small("red")))
    assert answer.status_code == 200
    Rows.model_validate(answer.json())
    first, second, third = answer.json()["images"]
    assert without_times(first) == without_times(alone) | {"name": "0.jpg"}
    assert (second["name"], second["error_code"]) == ("1.jpg", "unsupported")
    assert (third["status"], third["width"]) == ("ok", 64)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"files": files(*[b"x"] * 4)}, "Too many files. Maximum number of files is 3."),
        ({"files": [("other", ("a.jpg", b"x"))]}, "files called `images`"),
        ({"files": files(b"x"), "data": {"a": "b"}}, "Too many fields"),
        ({"data": b"", "headers": {"Content-Type": "multipart/form-data"}}, "Missing boundary"),
        (
            {"data": b"nonsense", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
            "Invalid multipart data.",
        ),
        (
            {
                "data": b"--x\r\n" + b"a:\r\n" * 100_000,
                "headers": {"Content-Type": "multipart/form-data; boundary=x"},
            },
            "Invalid multipart data.",
        ),
        ({"json": {"uri": "https://a.example/b"}}, 'Send {"url"'),
        ({"data": b"{", "headers": {"Content-Type": "application/json"}}, 'Send {"url"'),
        ({"data": b"", "params": {"overlay": "perhaps"}}, "query: overlay: "),
        ({"data": b"", "headers": {"Idempotency-Key": "k" * 256}}, "Idempotency-Key"),
    ],
)
def test_what_is_wrong_with_a_request_is_named(
    client: Client, form: dict[str, Any], message: str
) -> None:
    answer = client.post(**form)
    assert (answer.status_code, message in answer.json()["error_message"]) == (400, True)
    Error.model_validate(answer.json())


def test_a_form_larger_than_the_limit_is_refused(client: Client) -> None:
    assert client.post(files=files(bytes(2 << 19), b"x")).status_code == 413


def test_without_a_list_no_url_is_fetched(client: Client) -> None:
    answer = client.post(json={"url": "https://images.example/a.jpg"})
    assert (answer.status_code, "--url-hosts" in answer.text) == (403, True)


def test_the_bare_path_takes_bytes_whatever_they_are_called(client: Client) -> None:
    for kind in ("multipart/form-data", "application/json", "text/plain"):
        answer = client.post("/", data=small("red"), headers={"Content-Type": kind})
        assert (answer.status_code, answer.json()["media_type"]) == (200, "image/png")


def test_an_overlay_is_a_field_or_the_answer_itself(client: Client, forged: bytes) -> None:
    plain = client.post(data=forged).json()
    row = client.post(data=forged, params={"overlay": "true"}).json()
    drawn = base64.b64decode(row.pop("overlay_png"))
    assert without_times(row) == without_times(plain)
    answer = client.post(data=forged, headers={"Accept": "image/png"})
    assert (answer.headers["content-type"], answer.content) == ("image/png", drawn)
    picture = Image.open(io.BytesIO(drawn))
    assert picture.size == (row["width"], row["height"])
    assert (255, 0, 153) in set(picture.get_flattened_data())


def test_what_has_no_overlay_has_its_row(client: Client) -> None:
    answer = client.post(data=b"no image", headers={"Accept": "image/png"})
    assert (answer.status_code, answer.json()["error_code"]) == (422, "unsupported")
    answer = client.post(data=b"no image", params={"overlay": "true"})
    assert (answer.status_code, answer.json()["overlay_png"]) == (422, None)
    answer = client.post(files=files(b"x", b"y"), headers={"Accept": "image/png"})
    assert answer.status_code == 406


def test_a_key_has_one_answer(client: Client) -> None:
    body, key = small("blue"), {"Idempotency-Key": "one"}
    first = client.post(data=body, headers=key)
    again = client.post(data=body, headers=key)
    assert (first.content, first.status_code) == (again.content, again.status_code)
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    assert client.post(data=small("green"), headers=key).status_code == 409
    assert client.post(data=body, headers=key, params={"overlay": "true"}).status_code == 409


def test_a_failure_to_fetch_is_no_lasting_answer() -> None:
    """The second time the host sends the picture, and the key names the same request."""

    sent: list[ImageError | bytes] = [FetchTimeout("late"), b"a picture"]

    class Host(Fetcher):
        async def fetch(self, address: str) -> bytes:
            if isinstance(answer := sent.pop(0), ImageError):
                raise answer
            return answer

    async def scan(picture: bytes | ImageError, overlay: bool) -> dict[str, Any]:
        failed = isinstance(picture, ImageError)
        found = {"status": "failed", "error_stage": "fetch"} if failed else {"status": "ok"}
        return {"scanned_at": datetime.now(UTC), **found}

    api = Api(scan, Host([], 1000), 1)
    client = TestClient(application(api, 1, False))
    asked = {"json": {"url": "https://a.example/b"}, "headers": {"Idempotency-Key": "one"}}
    answers = [client.post("/v1/scan", **asked) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [422, 200, 200]
    assert "Idempotent-Replayed" in answers[2].headers


def test_a_form_sent_again_has_the_same_answer(client: Client) -> None:
    """Its boundary is another one."""
    key = {"Idempotency-Key": "form"}
    first, again = (client.post(files=files(small("red")), headers=key) for _ in range(2))
    assert first.request.body != again.request.body
    assert first.content == again.content


def test_an_answer_is_as_described(client: Client, forged: bytes) -> None:
    Row.model_validate(EXAMPLE)
    Row.model_validate(client.post(data=forged).json())
    Row.model_validate(client.post(data=b"").json())
    Error.model_validate(client.post("/other").json())
    document = requests.get(f"{client.url}/openapi.json", headers=BEARER, timeout=60).json()
    openapi_spec_validator.validate(document)
    schemas = document["components"]["schemas"]
    assert set(schemas["Row"]["required"]) == set(EXAMPLE)
    assert set(document["paths"]) == {"/", "/v1/scan", "/-/healthz"}
    assert document["security"] == [{"bearer": []}]
    assert requests.get(f"{client.url}/openapi.json", timeout=60).status_code == 401


def test_the_client_shown_works(client: Client, forged: bytes) -> None:
    shown: dict[str, Any] = {}
    (code,) = blocks("python", page("endpoint"))
    exec(code, shown)
    row = shown["scan"](forged, client.url, TOKEN)
    assert (row["status"], row["overlay"][:4]) == ("ok", b"\x89PNG")


def test_schemathesis_finds_nothing(client: Client, tmp_path: Path) -> None:
    """Health is answered by Serve, which is not here."""
    config = ["--config-file", str(ATTACK / "schemathesis.toml")]
    flags = ["--max-examples=40", "--seed=1", "--exclude-path=/-/healthz", "--no-color"]
    token = ["-H", f"Authorization: Bearer {TOKEN}"]
    attack = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", *config, "run", *flags, *token,
         f"{client.url}/openapi.json"],
        cwd=tmp_path,
        env=os.environ | {"SCHEMATHESIS_HOOKS": "pictures", "PYTHONPATH": str(ATTACK)},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert attack.returncode == 0, attack.stdout
    assert "Fuzzing" in attack.stdout


@pytest.mark.parametrize("host", ["127.0.0.1", "10.1", "[::1]", "https://a.example", "a_b", "",
                                  "a.example:0", "a.example:99999"])  # fmt: skip
def test_what_is_no_name_of_a_host_is_refused(host: str) -> None:
    with pytest.raises(UsageError, match="--url-hosts"):
        EndpointSettings(url_hosts=[host])
