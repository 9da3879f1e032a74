"""Ray session of one command: a private Ray on this machine, or a connection to a cluster.

A Ray driver puts its working folder and its script's folder on the import path of all workers,
before the installed packages. A folder that a user scans must not be there: a `numpy.py` beside the
photographs would run. So the driver connects from an empty folder, which is also the working folder
of the workers of a local Ray.
"""

from __future__ import annotations

import logging
import os
import resource
import secrets
import signal
import sys
import time
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import chdir, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile, gettempdir
from typing import Any

import ray
from ray._private import ray_constants, services, utils
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

from prompt_iml.engine.errors import PromptImlError, UsageError
from prompt_iml.engine.runtimes.blob_cache import VARIABLE, default_folder
from prompt_iml.pipeline.checks import check_cluster, ray_address
from prompt_iml.pipeline.logs import one_line

LOG_LEVEL = "RAY_BACKEND_LOG_LEVEL"
NICENESS = ray_constants.RAY_WORKER_NICENESS
# What Ray's processes need at least, with the flags of `ulimit`; below, they die without a word.
LIMITS = {
    resource.RLIMIT_NOFILE: (1024, "open files", "-n"),
    resource.RLIMIT_AS: (16 << 30, "bytes of address space", "-v"),
}
RAY_UTILS = vars(utils)  # of Ray
MOST_CHARACTERS = 19  # of a folder far below which Ray has sockets, whose names may have 107
ROUNDS = 50  # tenths of a second for what is left of a Ray to end
IN_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # environment variable that Ray sets in a submitted job


@contextmanager
def ray_session(address: str, actors: int | None) -> Iterator[Path | None]:
    """Connect to a cluster, or start one on this machine and end it afterwards.

    The environment is restored at the end. A caller that is connected already keeps its session.

    Args:
        address: `local`, `auto` (RAY_ADDRESS, else local) or a cluster's address.
        actors: requested scan actors; a local cluster gets a CPU for each.

    Yields:
        A folder that only the processes of this user can enter, where all run on this machine.

    Raises:
        UsageError: no cluster responds at the address.
    """
    if ray.is_initialized():
        yield None
        return
    address = ray_address(address)
    with _private_ray(actors) if address == "local" else _joined_ray(address) as folder:
        yield folder


@contextmanager
def _private_ray(actors: int | None) -> Iterator[Path]:
    """Start a Ray that listens on the loopback address alone, with a random token, and whose files
    only this user can reach.

    The token exists in the environment of its processes, which other users cannot read, and by
    which those that outlive it are known.
    """
    _raise_limits()
    token = secrets.token_hex(32)
    # Ray would listen on all addresses of the machine. This switch, meant for systems whose
    # firewall warns about every port, makes each of its processes listen on loopback.
    switches = {"ENABLE_RAY_CLUSTER": False}
    # This server is started without a dashboard, too: to ask clouds for the kind of this machine.
    servers = {"start_api_server": lambda *_, **__: (None, None)}
    try:
        with _empty_folder(token) as folder:
            variables = {
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": token,
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_TMPDIR": str(folder),  # Ray's own folders can be written by everybody
                "no_grpc_proxy": _unproxied(),
                # Ray would give its workers a twentieth of what other programs get of a busy core.
                NICENESS: os.environ.get(NICENESS, "0"),
                LOG_LEVEL: os.environ.get(LOG_LEVEL, "fatal"),  # Ray's log files have all of it
                VARIABLE: str(default_folder().absolute()),
            }
            with _changed(os.environ, variables):
                _read_token_again()
                with (
                    _changed(vars(ray_constants), switches),
                    _changed(vars(services), servers),
                    _without_notice(),
                ):
                    _start(folder, actors)
                yield folder
    finally:
        _read_token_again()


def _unproxied() -> str:
    """Return the hosts that gRPC asks directly, with this machine among them.

    The metrics exporter of a driver, unlike all else of Ray, would ask a proxy of the environment
    for a process of its own machine: the proxy would get the token of the cluster, or the driver
    would wait for it.
    """
    variables = "no_grpc_proxy", "no_proxy"  # gRPC reads the first that is set
    named = next(filter(None, map(os.environ.get, variables)), "")
    return ",".join(filter(None, (named, "127.0.0.1")))


def _end_processes(token: str) -> None:
    """End what is left of the Ray whose processes have this token.

    When Ray is interrupted while it starts, its agents would wait minutes for a head that is gone.
    """
    for _ in range(ROUNDS):
        left = [pid for pid in _processes() if token.encode() in _environment(pid)]
        for pid in left:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if not left:
            return
        time.sleep(0.1)


def _processes() -> list[int]:
    """Return the ids of all processes; none where the system has no /proc."""
    folders = Path("/proc").glob("[0-9]*")
    return [int(folder.name) for folder in folders if int(folder.name) != os.getpid()]


def _environment(pid: int) -> bytes:
    """Return the environment with which a process was started; empty if it may not be read."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes()
    return b""


@contextmanager
def _joined_ray(address: str) -> Iterator[None]:
    check_cluster(address)
    with _empty_folder() as folder, _changed(os.environ, {"no_grpc_proxy": _unproxied()}):
        try:
            with _changed(vars(ray_constants), {"NUM_REDIS_GET_RETRIES": 1}):  # of half a minute
                _connect(folder, address, logging_level=logging.WARNING)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UsageError(
                f"no Ray cluster at {address} ({one_line(error)}): try --address local"
            ) from error
        yield


@contextmanager
def _empty_folder(token: str = "") -> Iterator[Path]:
    """Create a folder that only this user can enter; shut Ray down and remove it at the end.

    Args:
        token: that of a Ray of this machine, whose sockets and logs lie in the folder.

    Raises:
        UsageError: no folder can be created.
    """
    with _temporary_folder(for_ray=bool(token)) as folder:
        try:
            yield Path(folder)
        finally:
            ray.shutdown()
            if token:
                _end_processes(token)


def _temporary_folder(for_ray: bool) -> TemporaryDirectory[str]:
    """Create a folder among the temporary files; for a Ray of this machine in RAY_TMPDIR, if that
    is set. Raises `UsageError` if that is not possible."""
    try:
        parent = gettempdir()
        if for_ray and (named := os.environ.get("RAY_TMPDIR")):
            if len(named) > MOST_CHARACTERS:
                raise UsageError(
                    f"RAY_TMPDIR has more than {MOST_CHARACTERS} characters: shorten it"
                )
            parent = named
        elif for_ray and len(parent) > MOST_CHARACTERS:
            parent = "/tmp"
        return TemporaryDirectory(prefix="prompt-iml-", dir=parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise UsageError(f"no temporary folder ({error}): set TMPDIR or RAY_TMPDIR") from error


def _raise_limits() -> None:
    """Raise limits of this process to what Ray needs; raise `UsageError` where that is refused."""
    for kind, (needed, what, flag) in LIMITS.items():
        soft, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise UsageError(
                f"this process is allowed {hard:,} {what}, and Ray needs {needed:,}: raise "
                f"`ulimit {flag}`"
            )
        if soft != resource.RLIM_INFINITY and soft < needed:
            resource.setrlimit(kind, (needed, hard))


def _start(folder: Path, actors: int | None) -> None:
    """Start Ray on this machine; raise `PromptImlError` if it does not start."""
    try:
        _connect(
            folder,
            "local",
            num_cpus=actors,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except Exception as error:  # Ray raises no narrower one
        raise PromptImlError(
            f"Ray does not start on this machine ({one_line(error)}): see `ulimit -a`, and the "
            f"space in {folder.parent}"
        ) from error


def _connect(folder: Path, address: str, **options: Any) -> None:
    """Call `ray.init` in the folder, as a script of that folder would."""
    # Under `uv run` Ray would send the working folder to the workers; in a job, the job decides.
    switches = {} if IN_A_JOB in os.environ else {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": False}
    arguments, sys.argv = sys.argv, [str(folder / "driver")]
    on_sigterm = signal.getsignal(signal.SIGTERM)
    # Ray would exit silently on SIGTERM while it starts, and drain the node first.
    handlers = {"set_sigterm_handler": lambda _: None}
    try:
        with chdir(folder), _changed(vars(ray_constants), switches), _changed(RAY_UTILS, handlers):
            ray.init(address, **options)
    finally:
        sys.argv = arguments
        # Ray's core would print a trace on SIGTERM and abort.
        if callable(on_sigterm):
            signal.signal(signal.SIGTERM, on_sigterm)


@contextmanager
def _without_notice() -> Iterator[None]:
    """Pass on what is written to stderr, but the line by which Ray's core confirms its log level.

    It goes to the file descriptor, before any of Ray's settings for logs takes effect.
    """
    with TemporaryFile() as held:
        stderr = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            for line in held:
                if LOG_LEVEL.encode() not in line:
                    os.write(2, line)


def _read_token_again() -> None:
    """Make this process use the token of its environment: Ray reads it once, and keeps it."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _changed(names: MutableMapping[str, Any], values: Mapping[str, Any]) -> Iterator[None]:
    """Set values while the block runs, then restore all names to their state before."""
    before = dict(names)
    names.update(values)
    try:
        yield
    finally:
        for name in names.keys() - before.keys():
            del names[name]
        names.update(before)
