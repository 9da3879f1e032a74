"""Online endpoint on Ray Serve, `prompt-iml serve`: an image is posted over HTTP and scanned.

    POST /          the bytes of one image -> the columns of its row, as JSON
    POST /v1/scan   the same; or several images as a form; or {"url": ...} of a host that is allowed
    GET /openapi.json   all of it as OpenAPI    GET /-/healthz   health, from Serve's proxy
    200 scanned    401 no valid token    404 another path    405 another method
    400 not HTTP, a head that is too large, or a wrong parameter    403 a URL that is not allowed
    406 several images as PNG    408 the body did not arrive in time    409 a key used before
    413 the body is larger than --max-bytes    422 the image cannot be scanned; with its row
    500 the engine failed, with its row; or the replica died    503 overloaded; with Retry-After

    client -> proxy of a node: `limits` -> replica: `limits`, `api` -> its process: `image_process`

A replica scans one image after another. Only tiles of the same image share a batch. An image that
crashes or hangs its decoder costs its own row alone.

Every client that reaches the port is served, unless PROMPT_IML_SERVE_TOKEN is set where proxies and
replicas run. TLS, and rights of single clients, belong to an ingress in front.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from types import FrameType

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from starlette.types import ASGIApp

from prompt_iml.cluster.fleet import api
from prompt_iml.cluster.fleet.https import Fetcher
from prompt_iml.cluster.fleet.image_process import ImageProcess
from prompt_iml.cluster.fleet.limits import CALLBACK, TOKEN, Front
from prompt_iml.cluster.settings import EndpointSettings, ServeSettings
from prompt_iml.engine.errors import ImageError, UsageError
from prompt_iml.engine.model.folder import load_model
from prompt_iml.engine.runtimes.open import check_engine
from prompt_iml.pipeline.checks import ray_address
from prompt_iml.pipeline.chosen_model import chosen_model
from prompt_iml.pipeline.logs import log
from prompt_iml.pipeline.registry.registry import PromptSetRef, Registry, look_up
from prompt_iml.pipeline.run.folder import Json
from prompt_iml.pipeline.scan.rows import Row, failure, identity
from prompt_iml.pipeline.scan.scanner import RowSpec
from prompt_iml.pipeline.scan.session import ray_session
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.units import Sample

NAME = "prompt-iml"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
ONGOING = 4  # requests of a replica; one is scanned while the bodies of others arrive
RETRY_SECONDS = 1.0
MAX_STARTS = 3  # attempts to start a replica before the deployment fails


def application(args: Json) -> Application:
    """Build the application that a Serve config names.

    Its import path is `prompt_iml.cluster.fleet.serve:application`.

    Args:
        args: fields of `EndpointSettings`.

    Raises:
        UsageError: the model or the prompt set does not exist.
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
        max_constructor_retry_count=MAX_STARTS,
    )(serve.ingress()(Endpoint))
    return deployment.bind(endpoint_spec(settings), settings)


def endpoint_spec(settings: EndpointSettings) -> RowSpec:
    """Return the row settings of a replica; raises `UsageError` like `application`."""
    model, prompt_set = load_model(settings.model), None
    if settings.registry:
        registry = Registry(storage.canonical(settings.registry), model.sha256)
        prompt_set = PromptSetRef(registry.uri, look_up(registry, settings.prompts))
    model = chosen_model(model, prompt_set=prompt_set, closer_look=settings.closer_look)
    return RowSpec(
        model=model.reference,
        model_digest=model.digest,
        engine=settings.engine,
        precision=settings.precision,
        closer_look=settings.closer_look,
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
        spec: row settings.
        settings: limits of requests, and whether to refuse to start without a token.

    Raises:
        UsageError: the token is missing.
        Fatal: this node has a different model, or the engine does not run.
    """

    def __init__(self, spec: RowSpec, settings: EndpointSettings) -> None:
        self._token = os.environ.get(TOKEN, "").encode()
        if settings.require_token and not self._token:
            raise UsageError(f"The token is missing: set {TOKEN} where the replicas run")
        self._settings = settings
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scan")  # one image at a time
        self._process = self._thread.submit(ImageProcess, spec).result()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the application, as Serve asks for it.

        The proxy has checked requests, unless the cluster's proxies were started without the
        limits.
        """
        settings, max_bytes = self._settings, int(self._settings.max_bytes)
        fetcher = Fetcher(settings.url_hosts, max_bytes)
        interface = api.Api(self.row, fetcher, settings.max_images)
        app = api.application(interface, settings.max_images, bool(self._token))
        return Front(app, self._token, max_bytes, ONGOING)

    async def row(self, picture: bytes | ImageError, overlay: bool) -> Row:
        """Return the row of a picture, or of the error of fetching it.

        Args:
            picture: its bytes, or the error.
            overlay: as `ImageProcess.row` has it.
        """
        if isinstance(picture, ImageError):
            row = identity(Sample("")) | failure(picture)
        else:
            loop = asyncio.get_running_loop()
            row = await loop.run_in_executor(self._thread, self._process.row, picture, overlay)
        return row | self._process.provenance | {"scanned_at": datetime.now(UTC)}


def serve_until_signal(settings: ServeSettings) -> Json:
    """Serve until SIGINT or SIGTERM.

    Returns:
        The summary to print: the URL, and for how many seconds it was served.

    Raises:
        UsageError: the settings cannot be served.
    """
    if not settings.actor_gpus:  # with GPUs the engine may exist only on the nodes
        check_engine(settings.engine, settings.precision)
    args = settings.model_dump(include=set(EndpointSettings.model_fields))
    # A token that is set here protects nothing unless the replicas have it too.
    args["require_token"] |= TOKEN in os.environ
    target = application(args)
    if settings.host not in LOOPBACK and not args["require_token"]:
        log(f"Warning: Every client that reaches {settings.host} is served. Set {TOKEN}.")
    # A private Ray, with its proxies, inherits this environment.
    os.environ.update(CALLBACK | {"PROMPT_IML_MAX_BYTES": str(int(settings.max_bytes))})
    with (
        _noted_signals() as ended,
        ray_session(settings.address, None),
        _deployed(target, settings) as url,
    ):
        started = time.monotonic()
        log(f"serving at {url}")
        with suppress(KeyboardInterrupt):
            ended.wait()
        seconds = time.monotonic() - started
    return {"url": url, "seconds": round(seconds, 2)}


@contextmanager
def _deployed(target: Application, settings: ServeSettings) -> Iterator[str]:
    """Deploy the application on the connected cluster while the block runs; yields its URL."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    is_ours = ray_address(settings.address) == "local"
    if is_ours:
        _check_cpus(settings)
    elif serve.status().proxies:
        raise UsageError(
            "Ray Serve already runs on this cluster: deploy "
            "prompt_iml.cluster.fleet.serve:application with a Serve config"
        )
    try:
        serve.start(http_options={"host": settings.host, "port": settings.port})
        serve.run(target, name=NAME)
        yield f"http://{settings.host}:{settings.port}/"
        serve.delete(NAME)  # returns when pending requests are answered
    except (RuntimeError, TimeoutError) as error:
        raise UsageError(f"The endpoint does not start: {_reason(error)}") from error
    finally:
        if not is_ours:  # a cluster of our own is stopped as a whole
            serve.shutdown()  # type: ignore[no-untyped-call]


def _check_cpus(settings: ServeSettings) -> None:
    """Raise `UsageError` if a private Ray has too few CPUs, for which Ray would wait for ever."""
    cpus = ray.cluster_resources()["CPU"]  # type: ignore[no-untyped-call]
    needed = settings.actor_cpus * settings.min_replicas
    if needed > cpus:
        raise UsageError(
            f"{settings.min_replicas} replicas need {needed} CPUs and Ray has {cpus:.0f}: lower "
            "--actor-cpus or --min-replicas"
        )


def _reason(error: Exception) -> str:
    """Return the last line of the error of a replica that died, or else of the error itself."""
    deployed = serve.status().applications.get(NAME)
    messages = [each.message for each in deployed.deployments.values()] if deployed else []
    return ("".join(messages).strip() or str(error)).splitlines()[-1]


@contextmanager
def _noted_signals() -> Iterator[threading.Event]:
    """Set an event and raise `KeyboardInterrupt` on SIGINT and SIGTERM, while the block runs.

    Callbacks of Ray can swallow the exception while it starts; the event stays.
    """
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
