"""`prompt-iml serve`: scans an image posted over HTTP and answers with its row, on Ray Serve.

    POST /   the bytes of one image -> the columns of its row, as JSON
    200 scanned    401 no token    404, 405 elsewhere, otherwise    408 the body did not arrive
    413 larger than --max-bytes    422 no image that can be scanned, with its row
    500 the engine failed, with its row; or the replica died    503 try again: Retry-After

A replica holds one `RowMaker` and scans one image after another, in a thread beside its event loop;
requests of several clients share no batch, tiles of one large image do. An image that kills or
hangs its decoder ends the replica: its requests get a 500, and Serve starts another. A child
process, as a scan has (`pipeline.scan.isolated`), would load an engine for each image.

Every client that reaches the port is served, unless PROMPT_IML_SERVE_TOKEN is set where the
replicas run. Serve's proxy holds a body in memory while its request waits: limits on bodies and
clients, and TLS, belong in front of it.
"""

from __future__ import annotations

import asyncio
import hmac
import io
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime

import ray
from PIL import Image as PilImage
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from prompt_iml.cluster.settings import EndpointSettings, ServeSettings
from prompt_iml.engine.errors import TooLarge, UsageError
from prompt_iml.engine.model.folder import load_model
from prompt_iml.engine.runtimes.open import check_engine
from prompt_iml.pipeline.logs import log
from prompt_iml.pipeline.registry.registry import PromptSetRef, Registry, look_up
from prompt_iml.pipeline.run.folder import Json
from prompt_iml.pipeline.run.schema import to_batch
from prompt_iml.pipeline.scan.rows import Row, failure
from prompt_iml.pipeline.scan.scanner import RowMaker, RowSpec
from prompt_iml.pipeline.scan.session import ray_address, ray_session
from prompt_iml.pipeline.scan.watchdog import Watchdog
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.units import Sample

NAME = "prompt-iml"
TOKEN = "PROMPT_IML_SERVE_TOKEN"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Columns of a place or of a run; a posted image has neither.
NOT_ANSWERED = ["image_id", "uri", "member", "content_id", "run_id", "heatmap_png"]
BODY_SECONDS = 30.0
ONGOING = 4  # requests of a replica: one is scanned while the bodies of others arrive
RETRY_SECONDS = 1.0
STARTS = 3  # attempts to start a replica before the deployment fails


def application(args: Json) -> Application:
    """Build the application that a Serve config names.

    Its import path is `prompt_iml.cluster.fleet.serve:application`.

    Args:
        args: fields of `EndpointSettings`.

    Raises:
        UsageError: the model or the prompts are not there.
    """
    settings = EndpointSettings(**args)
    deployment = serve.deployment(
        name=NAME,
        ray_actor_options={"num_cpus": settings.actor_cpus, "num_gpus": settings.actor_gpus},
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.min_replicas,
            max_replicas=settings.max_replicas,
            target_ongoing_requests=1,
        ),
        max_ongoing_requests=ONGOING,
        max_queued_requests=settings.max_queued,
        backpressure_config=BackpressureConfig(retry_after_s=RETRY_SECONDS),
        max_constructor_retry_count=STARTS,
    )(Endpoint)
    return deployment.bind(endpoint_spec(settings), settings.max_bytes, settings.require_token)


def endpoint_spec(settings: EndpointSettings) -> RowSpec:
    """Return how a replica makes rows; raises `UsageError`."""
    model = load_model(settings.model)
    prompt_set = None
    if settings.registry:
        registry = Registry(storage.canonical(settings.registry), model.sha256)
        prompt_set = PromptSetRef(registry.uri, look_up(registry, settings.prompts))
    return RowSpec(
        model=model.reference,
        model_sha256=model.sha256,
        engine=settings.engine,
        threads=settings.actor_cpus,
        max_pixels=settings.max_pixels,
        max_object_bytes=settings.max_bytes,
        heatmap=False,
        image_timeout=settings.image_timeout,
        prompt_set=prompt_set,
    )


class Endpoint:
    """A replica of the endpoint.

    Args:
        spec: how it makes rows.
        max_bytes: largest body.
        require_token: refuse to start without a token.

    Raises:
        UsageError: there is no token, or the model is another one here.
        RuntimeError: the engine does not run.
    """

    def __init__(self, spec: RowSpec, max_bytes: int, require_token: bool) -> None:
        self._token = os.environ.get(TOKEN, "").encode()
        if require_token and not self._token:
            raise UsageError(f"set {TOKEN} where the replicas run")
        self._max_bytes = max_bytes
        self._maker = RowMaker(spec, Watchdog(spec.image_timeout))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scan")  # one image at a time
        row = self._row(_blank_png())  # compiles the engine for one shape of tiles
        if row["status"] != "ok":
            raise RuntimeError(row["error_message"])

    async def __call__(self, request: Request) -> Response:
        """Answer a request."""
        refusal = self._refusal(request)
        if refusal:
            return refusal
        try:
            body = await self._body(request)
        except TooLarge as error:
            return JSONResponse(failure(error), 413)
        except TimeoutError:
            return _refused(408, f"the body did not come in {BODY_SECONDS:.0f} s")
        loop = asyncio.get_running_loop()
        row = await loop.run_in_executor(self._thread, self._row, body)
        return JSONResponse(as_json(row), status_code(row))

    def _refusal(self, request: Request) -> Response | None:
        """Return the answer to a request whose body need not be read, or None."""
        given = request.headers.get("authorization", "").encode()
        if self._token and not hmac.compare_digest(given, b"Bearer " + self._token):
            return _refused(401, "a token is wanted", {"WWW-Authenticate": "Bearer"})
        if request.url.path != "/":
            return _refused(404, "POST / is all there is")
        if request.method != "POST":
            return _refused(405, "POST the bytes of an image", {"Allow": "POST"})
        return None

    async def _body(self, request: Request) -> bytes:
        """Read the body; raises `TooLarge`, before the rest is read, or `TimeoutError`."""
        announced = int(request.headers.get("content-length", 0))
        self._check_size(announced)
        body = bytearray()
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                self._check_size(len(body))
        return bytes(body)

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self._max_bytes:
            raise TooLarge(f"more than {self._max_bytes} bytes")

    def _row(self, body: bytes) -> Row:
        (row,) = self._maker.rows([Sample("", data=body)])
        return row | self._maker.provenance | {"scanned_at": datetime.now(UTC)}


def _blank_png() -> bytes:
    sink = io.BytesIO()
    PilImage.new("RGB", (512, 512)).save(sink, "PNG")
    return sink.getvalue()


def _refused(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error_message": message}, status, headers)


def as_json(row: Row) -> Json:
    """Return the columns as a table holds them (float32), without `NOT_ANSWERED`."""
    answer: Json
    (answer,) = to_batch([row]).drop_columns(NOT_ANSWERED).to_pylist()
    mask = answer["mask_rle"]
    return answer | {
        "mask_rle": mask and mask.decode("ascii"),
        "scanned_at": answer["scanned_at"].isoformat(),
    }


def status_code(row: Row) -> int:
    """Return the HTTP status of a row: 200, 422 (the image's fault) or 500 (the engine's)."""
    if row["status"] == "ok":
        return 200
    return 500 if row["error_stage"] == "infer" else 422


def serve_until_signal(settings: ServeSettings) -> Json:
    """Serve until SIGINT or SIGTERM.

    Returns:
        The summary to print: the URL, and the seconds that it was served.

    Raises:
        UsageError: the settings cannot be served.
    """
    if not settings.actor_gpus:  # with GPUs the engine is on the nodes, not on this machine
        check_engine(settings.engine)
    args = settings.model_dump(include=set(EndpointSettings.model_fields))
    # A token of this shell that the replicas do not have would protect nothing.
    args["require_token"] |= TOKEN in os.environ
    target = application(args)
    if settings.host not in LOOPBACK and not args["require_token"]:
        log(f"note: every client that reaches {settings.host} is served: set {TOKEN}")
    with ray_session(settings.address, None), _deployed(target, settings) as url:
        started = time.monotonic()
        log(f"serving at {url}")
        _wait_for_signal()
        seconds = time.monotonic() - started
    return {"url": url, "seconds": round(seconds, 2)}


@contextmanager
def _deployed(target: Application, settings: ServeSettings) -> Iterator[str]:
    """Deploy the application on the connected cluster while the block runs; yields its URL."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    is_ours = ray_address(settings.address) == "local"
    if is_ours:
        _check_room(settings)
    elif serve.status().proxies:
        raise UsageError(
            "Ray Serve runs on this cluster already, with a port of its own: deploy "
            "prompt_iml.cluster.fleet.serve:application by a Serve config"
        )
    try:
        serve.start(http_options={"host": settings.host, "port": settings.port})
        serve.run(target, name=NAME)
        yield f"http://{settings.host}:{settings.port}/"
        serve.delete(NAME)  # returns when pending requests are answered
    except (RuntimeError, TimeoutError) as error:
        raise UsageError(f"cannot serve: {_reason(error)}") from error
    finally:
        if not is_ours:  # our own cluster ends with all that runs on it
            serve.shutdown()  # type: ignore[no-untyped-call]


def _check_room(settings: ServeSettings) -> None:
    """Refuse replicas that Ray would wait for; other clusters may grow, and are not checked."""
    cpus = ray.cluster_resources()["CPU"]  # type: ignore[no-untyped-call]
    needed = settings.actor_cpus * settings.min_replicas
    if needed > cpus:
        raise UsageError(
            f"{settings.min_replicas} replicas need {needed} CPUs, and there are {cpus:.0f}: lower "
            "--actor-cpus or --min-replicas"
        )


def _reason(error: Exception) -> str:
    """Return the last line of the error that a replica died of, or else of the error itself."""
    deployed = serve.status().applications.get(NAME)
    died = [each.message for each in deployed.deployments.values()] if deployed else []
    return ("".join(died).strip() or str(error)).splitlines()[-1]


def _wait_for_signal() -> None:
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
