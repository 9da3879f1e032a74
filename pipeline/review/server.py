"""HTTP answers of the review's page: its files, the queue, pictures and masks, decisions."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import ASGIApp

from prompt_iml.engine.errors import ImageError, PromptImlError
from prompt_iml.pipeline.review.guard import Guard
from prompt_iml.pipeline.review.session import Session
from prompt_iml.pipeline.run.folder import Json
from prompt_iml.pipeline.truth.reviews import Decision

HERE = Path(__file__).parent
NOTE_CHARACTERS = 2000


class Decided(BaseModel):
    """Body of a decision; `mask` is a sheet as the data: URL of a PNG, or null if unchanged."""

    model_config = ConfigDict(extra="forbid")

    decision: Decision
    mask: str | None = None
    note: Annotated[str, Field(max_length=NOTE_CHARACTERS)] = ""


def make_app(session: Session, port: int, token: str) -> ASGIApp:
    """Return the application for a server on this port, whose link has this token."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _add_files(app)
    _add_pictures(app, session)
    for kind, status in (
        (ImageError, HTTPStatus.NOT_FOUND),
        (PromptImlError, HTTPStatus.INTERNAL_SERVER_ERROR),
        (ValueError, HTTPStatus.UNPROCESSABLE_ENTITY),
    ):
        app.add_exception_handler(kind, _error(status))

    @app.get("/queue")
    def queue() -> Json:
        session.refresh()
        return session.document()

    @app.post("/decisions/{image_id}")
    def decide(image_id: str, body: Decided) -> Json:
        return session.decide(image_id, body.decision, body.mask, body.note)

    return Guard(app, port, token)


def _add_files(app: FastAPI) -> None:
    for path, kind in (("/", "html"), ("/page.css", "css"), ("/page.js", "js")):
        app.add_api_route(path, _file(HERE / f"page.{kind}"), response_class=FileResponse)
    app.add_api_route("/favicon.ico", lambda: Response(status_code=HTTPStatus.NO_CONTENT))


def _file(path: Path) -> Callable[[], FileResponse]:
    return lambda: FileResponse(path)


def _add_pictures(app: FastAPI, session: Session) -> None:
    @app.get("/pictures/{image_id}")
    def picture(image_id: str) -> Response:
        return Response(session.picture(image_id), media_type="image/jpeg")

    @app.get("/masks/{image_id}")
    def mask(image_id: str) -> Response:
        return Response(session.mask(image_id), media_type="image/png")

    @app.get("/heat/{image_id}")
    def heat(image_id: str) -> Response:
        return Response(session.heat(image_id), media_type="image/png")


def _error(status: HTTPStatus) -> Callable[[Request, Exception], Response]:
    def answer(_: Request, error: Exception) -> Response:
        code = f"{error.code}: " if isinstance(error, ImageError) else ""
        return JSONResponse({"error": f"{code}{error}"}, status)

    return answer
