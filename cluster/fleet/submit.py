"""Submission of a scan as a Ray job, `prompt-iml submit`.

    the scan's settings -> flags -> entrypoint `prompt-iml scan ... --run-id RUN`
    the run has no job, or its last job has ended -> submit a new attempt: RUN, RUN~2, RUN~3, ...
    the run's last job is running -> attach to it

The cluster's head accepts a submission id only once, so two commands at the same time get one job.
The environment of this shell is not passed on: credentials are those of the cluster.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_iml.cluster.fleet.working_dir import packed
from prompt_iml.engine.errors import MissingDependency, UsageError
from prompt_iml.pipeline.logs import log
from prompt_iml.pipeline.run.folder import Json, default_run_id
from prompt_iml.pipeline.settings import Pool, ScanSettings

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

    from prompt_iml.cluster.settings import SubmitSettings

ATTEMPT = "~"  # not allowed in a run id
SERVER_SECONDS = 60.0  # to wait for a head that has just started and has no agent yet
POLL_SECONDS = 0.5


def submit(settings: SubmitSettings) -> tuple[Json, int]:
    """Start a scan on a cluster, attach to it, or resume it.

    Returns:
        The summary to print (the scan's own, or else the job's status) and the exit code: that of
        the scan, 0 with `--no-wait`, or 1 if the job ended without one.

    Raises:
        UsageError: the cluster cannot be reached or refuses the token, or a path is relative.
    """
    check_paths(settings)
    run_id = settings.run_id or run_id_of(settings)
    command = [*scan_command(settings), f"--run-id={run_id}"]
    with _usage_errors(settings.address):
        client = _connect(settings.address)
        job = start(client, run_id, shlex.join(command), settings.working_dir)
        if not settings.wait:
            return _status(client, run_id, job), 0
        last = follow(client, job)
        code = client.get_job_info(job).driver_exit_code
        status = _status(client, run_id, job)
    return _summary(last) or status, 1 if code is None else code


def check_paths(settings: SubmitSettings) -> None:
    """Raise `UsageError` if an input, the output, the registry or the policy is a relative path."""
    others = settings.registry or "/", settings.policy or "/"
    for name in (*settings.inputs, settings.output, *others):
        if not ("://" in name or Path(name).is_absolute()):
            raise UsageError(
                f"{name} is relative, and the cluster runs in another folder: use s3://... or an "
                "absolute path that every node has"
            )


def run_id_of(settings: ScanSettings) -> str:
    """Return a run id for these settings, which does not depend on the pool or on defaults."""
    names = ScanSettings.model_fields.keys() - Pool.model_fields.keys()
    return default_run_id(settings.model_dump(include=set(names), exclude_defaults=True))


def scan_command(settings: ScanSettings) -> list[str]:
    """Return the command line of `prompt-iml scan` for these settings, without run id and address.

    Defaults are left out, so that the cluster's version decides on them.
    """
    command = ["prompt-iml", "scan", *settings.inputs]
    for name, field in ScanSettings.model_fields.items():
        value = getattr(settings, name)
        if name in ("inputs", "run_id", "address") or value == field.get_default():
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            command.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            values = value if isinstance(value, list) else [value]
            command += [f"--{flag}={each}" for each in values]
    return command


def start(client: JobSubmissionClient, run_id: str, entrypoint: str, folder: str | None) -> str:
    """Submit a job of the run, unless one is running; return the submission id.

    Raises:
        UsageError: a job of the run is running with another command.
    """
    attempts = _attempts(client, run_id)
    job = _attempt_id(run_id, len(attempts) or 1)
    if attempts and not attempts[-1].status.is_terminal():
        _check_same(attempts[-1], entrypoint)
        log(f"attaching to job {job}")
        return job
    if attempts:
        job = _attempt_id(run_id, len(attempts) + 1)
    with packed(folder) as package:
        runtime_env = {"working_dir": str(package)} if package else {}
        if _submit_once(client, job, entrypoint, runtime_env, run_id):
            log(f"{'resuming' if attempts else 'started'} run {run_id} as job {job}")
        else:
            log(f"attaching to job {job}, which was submitted at the same time")
    return job


def _submit_once(
    client: JobSubmissionClient, job: str, entrypoint: str, runtime_env: Json, run_id: str
) -> bool:
    """Submit a job; return False if it exists already. Waits for a head that has just started."""
    deadline = time.monotonic() + SERVER_SECONDS
    while True:
        try:
            client.submit_job(
                entrypoint=entrypoint,
                submission_id=job,
                runtime_env=runtime_env,
                metadata={"run_id": run_id},
            )
            return True
        except RuntimeError as error:
            if "already exists" in str(error):
                return False
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)


def _attempts(client: JobSubmissionClient, run_id: str) -> list[JobDetails]:
    """Return the run's jobs on this cluster, oldest first."""
    jobs = {job.submission_id: job for job in client.list_jobs()}
    found: list[JobDetails] = []
    while (job := jobs.get(_attempt_id(run_id, len(found) + 1))) is not None:
        found.append(job)
    return found


def _attempt_id(run_id: str, number: int) -> str:
    return run_id if number == 1 else f"{run_id}{ATTEMPT}{number}"


def _check_same(job: JobDetails, entrypoint: str) -> None:
    if job.entrypoint != entrypoint:
        raise UsageError(
            f"job {job.submission_id} is running as `{job.entrypoint}`: wait until it ends or "
            "choose another --run-id"
        )


def follow(client: JobSubmissionClient, job: str) -> str:
    """Show a job's log on stderr until the job ends; return the log's last line."""
    shown = _Log()
    while True:
        try:
            asyncio.run(shown.tail(client, job))
        except (RuntimeError, OSError) as error:  # the job may run on
            log(f"The connection to the job's log failed ({error}); trying again.")
        if client.get_job_status(job).is_terminal():
            return shown.last
        time.sleep(POLL_SECONDS)


class _Log:
    """A job's log, as far as it was shown.

    Attributes:
        last: last line that is not empty.
    """

    def __init__(self) -> None:
        self.last = ""
        self._shown = 0

    async def tail(self, client: JobSubmissionClient, job: str) -> None:
        """Show the part of the log that was not shown yet; Ray always sends the whole log."""
        place = 0
        async for text in client.tail_job_logs(job):
            new = text[max(self._shown - place, 0) :]
            place += len(text)
            if new:
                self._shown = place
                sys.stderr.write(new)
                sys.stderr.flush()
                self.last = next((line for line in new.splitlines()[::-1] if line), self.last)


def _status(client: JobSubmissionClient, run_id: str, job: str) -> Json:
    status = str(client.get_job_status(job)).lower()
    return {"run_id": run_id, "submission_id": job, "status": status}


def _summary(line: str) -> Json | None:
    """Return the scan's summary, if the line is one."""
    try:
        summary = json.loads(line)
    except ValueError:
        return None
    return summary if isinstance(summary, dict) else None


def _connect(address: str) -> JobSubmissionClient:
    try:
        from ray.job_submission import JobSubmissionClient

        os.environ["RAY_API_SERVER_ADDRESS"] = (
            address  # Ray prefers it, and RAY_ADDRESS, to the argument
        )
        return JobSubmissionClient(address)
    except ModuleNotFoundError as error:
        raise MissingDependency(f"pip install 'prompt-iml[cluster]' ({error})") from error


@contextmanager
def _usage_errors(address: str) -> Iterator[None]:
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise UsageError(
            f"{address} refuses the token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        ) from error
    except (ConnectionError, RuntimeError) as error:
        raise UsageError(f"{address}: {' '.join(str(error).split())}") from error
