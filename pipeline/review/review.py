"""`prompt-iml review`: a page on 127.0.0.1 on which people decide about a scan's findings."""

from __future__ import annotations

import getpass
import os
import secrets
import shlex
import socket
import tempfile
import threading
import time
import webbrowser
from contextlib import closing, suppress
from html import escape
from pathlib import Path

import pyarrow.dataset as ds
import uvicorn

from prompt_iml.engine.errors import EmptySource, FetchError, MissingInput, UsageError
from prompt_iml.pipeline.detect.lines import name_of
from prompt_iml.pipeline.logs import log
from prompt_iml.pipeline.review.queue import make_queue
from prompt_iml.pipeline.review.server import make_app
from prompt_iml.pipeline.review.session import Session, Subject
from prompt_iml.pipeline.review.sources import Sources
from prompt_iml.pipeline.run.folder import Json, Run, read_json
from prompt_iml.pipeline.run.table import only_run, open_results
from prompt_iml.pipeline.settings import ReviewSettings
from prompt_iml.pipeline.storage import storage

HOST = "127.0.0.1"
ENDING_SECONDS = 2  # for answers under way
OPENING_SECONDS = 30  # in which the browser reads the file with the link


def review(settings: ReviewSettings) -> Json:
    """Serve the page until a signal ends it.

    Returns:
        `run_id`, `reviewer`, `decided` (pictures, in this session) and `reviews` (their folder).

    Raises:
        MissingInput: the output or the run has no results.
        UsageError: there is nothing to review, the port is taken, or decisions cannot be written.
    """
    subject = subject_of(settings)
    storage.check_writable(subject.run.output)
    with _listening(settings.port) as line:
        server: uvicorn.Server
        rows = [shown.row for shown in subject.queue]
        session = Session(subject, Sources(rows, subject.config, lambda: server.should_exit))
        port, token = line.getsockname()[1], secrets.token_urlsafe(32)
        server = uvicorn.Server(
            uvicorn.Config(
                make_app(session, port, token),
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=ENDING_SECONDS,
            )
        )
        _announce(f"http://{HOST}:{port}/?token={token}", subject, settings)
        with suppress(KeyboardInterrupt):  # which uvicorn raises again once it has ended
            server.run([line])
    return _ended(session, subject)


def subject_of(settings: ReviewSettings) -> Subject:
    """Return the run, its queue and the reviewer that the settings name; raises as `review`."""
    output = storage.canonical(settings.output)
    run = Run(output, only_run(output, settings.run_id))
    try:
        config = read_json(f"{run.folder}/config.json")
        results = open_results(run)
        if settings.label:
            results = results.filter(ds.field("label").isin(settings.label))
        with storage.fetching(output):
            queue = make_queue(
                results,
                config.get("policy", {}),
                run_id=run.run_id,
                order=settings.order,
                limit=settings.limit,
            )
    except FetchError as error:
        raise MissingInput(f"no results to review: {error}") from error
    if not queue:
        raise EmptySource(f"run {run.run_id} has no image to review: scan images, or other --label")
    return Subject(run, config, settings.reviewer or login_name(), queue)


def login_name() -> str:
    """Return the name of the user. Raises `UsageError` where the system knows none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError) as error:
        raise UsageError("this user has no name: add --reviewer NAME") from error


def _listening(port: int) -> socket.socket:
    """Return a socket that listens on a port of this machine; 0 is any that is free."""
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        raise UsageError(f"cannot listen on port {port} ({error.strerror}): --port 0") from error


def _announce(link: str, subject: Subject, settings: ReviewSettings) -> None:
    count = len(subject.queue)
    log(
        f"{count:,} picture{'s' * (count != 1)} of run {subject.run.run_id} to review, as "
        f"{subject.reviewer}:\n  {link}\nThe link is for you alone. Ctrl-C ends the review; every "
        "decision is saved at once."
    )
    if settings.browser:
        threading.Thread(target=open_browser, args=(link,), daemon=True).start()


def open_browser(link: str) -> None:
    """Open the link in a browser with a window, if there is one.

    The browser is given a file that leads to the link and that only this user can read, as others
    can see the arguments of a process.
    """
    with suppress(webbrowser.Error, OSError):
        browser = webbrowser.get()
        if type(browser) is webbrowser.GenericBrowser:  # one in the terminal
            return
        handle, path = tempfile.mkstemp(prefix="prompt-iml-review-", suffix=".html")
        with closing(os.fdopen(handle, "w")) as file:
            file.write(f'<meta http-equiv="refresh" content="0; url={escape(link)}">')
        browser.open(Path(path).as_uri())
        time.sleep(OPENING_SECONDS)
        Path(path).unlink()


def _ended(session: Session, subject: Subject) -> Json:
    """Log how many decisions were saved and what to do with them; return the summary."""
    count, output = len(session.decided), shlex.quote(name_of(subject.run.output))
    following = f"calibrate {output} --output policy.json" if count else f"review {output}"
    log(f"{count:,} picture{'s' * (count != 1)} decided; next: prompt-iml {following}")
    return {
        "run_id": subject.run.run_id,
        "reviewer": subject.reviewer,
        "decided": count,
        "reviews": session.folder,
    }
