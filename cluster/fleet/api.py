"""HTTP interface of a replica: pictures out of requests, rows into answers, described by OpenAPI.

`limits.Front` stands before it, so that a request here has the token and a body of bounded size.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Awaitable, Callable, Iterable
from importlib.metadata import version
from typing import Annotated, Any, NamedTuple

from fastapi import FastAPI, Header, Query
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from pydantic import BeforeValidator, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from prompt_iml.cluster.fleet.answers import REPEATED, Answered, Answers
from prompt_iml.cluster.fleet.https import Fetcher
from prompt_iml.cluster.fleet.image_process import OVERLAY
from prompt_iml.cluster.fleet.limits import Refused
from prompt_iml.cluster.fleet.schemas import (
    EXAMPLE,
    OMITTED_COLUMNS,
    Error,
    Row,
    Rows,
    UrlRequest,
)
from prompt_iml.engine.errors import Denied, ImageError
from prompt_iml.pipeline.run.folder import Json
from prompt_iml.pipeline.run.schema import row_to_json
from prompt_iml.pipeline.scan import rows

PNG = "image/png"
FIELD = "images"  # name of each picture in a form
PASSING = ("fetch", "infer")  # stages of errors that the same request need not get again
Scan = Callable[[bytes | ImageError, bool], Awaitable[rows.Row]]

Overlay = Annotated[
    bool,
    BeforeValidator(lambda given: {"true": True, "false": False}.get(given, given)),
    Query(strict=True, description="Whether to add the picture with its mask drawn over it."),
]
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="Name of the request: a replica answers it once, and then with the same "
        "answer, as long as it remembers it. Another request under the same name is refused.",
    ),
]


class Picture(NamedTuple):
    """Picture of a request.

    Attributes:
        data: its bytes, or its URL.
        name: its file name in a form; None where it is the only picture.
    """

    data: bytes | str
    name: str | None = None


class Api:
    """Interface of a replica.

    Args:
        scan: function of a picture, or of the error of fetching it, and whether to draw its mask;
            returns its row.
        fetcher: reader of the URLs that clients send.
        max_images: most pictures in a form.
    """

    def __init__(self, scan: Scan, fetcher: Fetcher, max_images: int) -> None:
        self._scan, self._fetcher, self._max_images = scan, fetcher, max_images
        self._answers = Answers()

    async def scan_raw(
        self, request: Request, overlay: Overlay = False, key: Key = None
    ) -> Response:
        """Scan the picture whose bytes are the body."""
        return await self._once(request, [Picture(await request.body())], overlay, key)

    async def scan(self, request: Request, overlay: Overlay = False, key: Key = None) -> Response:
        """Scan the picture whose bytes are the body, the pictures of a form, or that of a URL."""
        pictures = await self._pictures(request)
        return await self._once(request, pictures, overlay, key)

    async def _pictures(self, request: Request) -> list[Picture]:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        match kind:
            case "multipart/form-data":
                return await self._in_form(request)
            case "application/json":
                return [Picture(_url(await request.body()))]
        return [Picture(await request.body())]

    async def _in_form(self, request: Request) -> list[Picture]:
        """Return the files of a form; raise `HTTPException` (400) for what is none, or too many."""
        async with request.form(max_files=self._max_images, max_fields=0) as form:
            files = form.multi_items()
            pictures = [
                Picture(await file.read(), file.filename)
                for name, file in files
                if name == FIELD and isinstance(file, UploadFile)
            ]
        if not pictures or len(pictures) < len(files):
            raise HTTPException(400, f"The form must have files called `{FIELD}`, and no others.")
        return pictures

    async def _fetched(self, url: str) -> bytes | ImageError:
        try:
            return await self._fetcher.fetch(url)
        except Denied as error:
            raise Refused(403, {"error_message": str(error)}) from error
        except ImageError as error:
            return error

    async def _once(
        self, request: Request, pictures: list[Picture], overlay: bool, key: str | None
    ) -> Response:
        as_png = _wants_png(request)
        if as_png and len(pictures) > 1:
            raise HTTPException(406, f"{PNG} is an answer to one picture: accept application/json.")

        async def answer() -> Answered:
            return await self._answer(pictures, overlay, as_png)

        if key is None:
            return (await answer()).response
        client = request.headers.get("authorization", "")
        named = hashlib.sha256(f"{client}\0{key}".encode()).hexdigest()
        return await self._answers.once(named, _digest(pictures, (overlay, as_png)), answer)

    async def _answer(self, pictures: list[Picture], overlay: bool, as_png: bool) -> Answered:
        # One after another, so that the pictures of other requests take turns with them.
        found = [await self._row(picture.data, overlay or as_png) for picture in pictures]
        lasting = not any(row.get("error_stage") in PASSING for row in found)
        if as_png and OVERLAY in found[0]:
            return Answered(Response(found[0][OVERLAY], media_type=PNG), lasting)
        if pictures[0].name is None:
            row = found[0]
            return Answered(JSONResponse(as_json(row, overlay), status_code(row)), lasting)
        named = zip(pictures, found, strict=True)
        answers = [{"name": picture.name} | as_json(row, overlay) for picture, row in named]
        return Answered(JSONResponse({"images": answers}), lasting)

    async def _row(self, data: bytes | str, overlay: bool) -> rows.Row:
        """Return the row of a picture, which is fetched first if `data` is its URL."""
        picture = await self._fetched(data) if isinstance(data, str) else data
        return await self._scan(picture, overlay)


def as_json(row: rows.Row, overlay: bool = False) -> Json:
    """Return the columns as a table holds them (float32), without `OMITTED_COLUMNS`."""
    answer = row_to_json(row, OMITTED_COLUMNS)
    if overlay:
        drawn = row.get(OVERLAY)
        answer[OVERLAY] = base64.b64encode(drawn).decode() if drawn else None
    return answer


def status_code(row: rows.Row) -> int:
    """Return the HTTP status of a row: 200, 422 (a bad image) or 500 (the engine failed)."""
    if row["status"] == "ok":
        return 200
    return 500 if row["error_stage"] == "infer" else 422


def _wants_png(request: Request) -> bool:
    kinds = request.headers.get("accept", "").lower().split(",")
    names = {kind.partition(";")[0].strip() for kind in kinds}
    return PNG in names and "application/json" not in names


def _digest(pictures: Iterable[Picture], options: tuple[bool, ...]) -> str:
    """Return the digest of what is asked; a form's boundaries are no part of it."""
    whole = hashlib.sha256(repr(options).encode())
    for data, name in pictures:
        content = data if isinstance(data, bytes) else data.encode()
        asked = [name, type(data).__name__, hashlib.sha256(content).hexdigest()]
        whole.update(json.dumps(asked).encode())
    return whole.hexdigest()


def _url(body: bytes) -> str:
    """Return the URL of a request; raise `HTTPException` (400) if it has none."""
    try:
        return UrlRequest.model_validate_json(body).url
    except ValidationError as error:
        raise HTTPException(400, f'Send {{"url": "https://..."}}: {_first(error)}') from error


def _first(error: ValidationError | RequestValidationError) -> str:
    first = error.errors()[0]
    return ": ".join([*map(str, first["loc"]), first["msg"]])


async def _refused(_: Request, error: Any) -> Response:
    response: Response = error.response
    return response


async def _failed(_: Request, error: Any) -> Response:
    if isinstance(error, RequestValidationError):
        return JSONResponse({"error_message": _first(error)}, 400)
    if isinstance(error, HTTPException):
        return JSONResponse({"error_message": error.detail}, error.status_code)
    return JSONResponse({"error_message": "The replica failed on this request."}, 500)


BINARY: Json = {"schema": {"type": "string", "format": "binary"}}
RAW: Json = {"application/octet-stream": BINARY, "image/*": BINARY}
RETRY: Json = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}
RESPONSES: dict[int | str, Json] = {
    400: {"model": Error, "description": "The request is not HTTP, or has a wrong parameter."},
    401: {"model": Error, "description": "The token is missing or another."},
    403: {"model": Error, "description": "The URL is not on the list of hosts."},
    406: {"model": Error, "description": "Several pictures have no answer as PNG."},
    408: {"model": Error, "description": "The body did not arrive in time."},
    409: {"model": Error, "description": "Another request has the same Idempotency-Key."},
    413: {"model": Error, "description": "The body is too large."},
    422: {"model": Row, "description": "The picture cannot be scanned; its row says why."},
    500: {"model": Row | Error, "description": "The engine failed; its row says why."},
    503: {
        "model": Error,
        "description": "Too many requests wait: try again.",
        "headers": RETRY,
        "content": {"text/plain": {"schema": {"type": "string"}}},
    },
}
REPEAT: Json = {REPEATED: {"description": "`true`: an answer again.", "schema": {"type": "string"}}}
FOUND: Json = {"description": "What was found.", "headers": REPEAT, "content": {PNG: BINARY}}
HEALTH: Json = {
    "get": {
        "summary": "Health of the node, for balancers",
        "operationId": "health",
        "security": [],
        "responses": {
            code: {"description": text, "content": {"text/plain": {"schema": {"type": "string"}}}}
            for code, text in (("200", "It has a replica."), ("503", "Send it no requests."))
        },
    }
}


def _form(max_images: int) -> Json:
    """Return the schema of a form with pictures."""
    files = {"type": "array", "items": BINARY["schema"], "minItems": 1, "maxItems": max_images}
    fields = {"properties": {FIELD: files}, "required": [FIELD], "additionalProperties": False}
    return {"type": "object"} | fields


def application(api: Api, max_images: int, has_token: bool) -> FastAPI:
    """Return the ASGI application of a replica; `has_token`: whether clients need one."""
    app = FastAPI(title="prompt-iml", version=version("prompt-iml"), docs_url=None, redoc_url=None)
    bodies = RAW | {
        "multipart/form-data": {"schema": _form(max_images)},
        "application/json": {"schema": UrlRequest.model_json_schema()},
    }
    for path, run, model, content in (
        ("/v1/scan", api.scan, Row | Rows, bodies),
        ("/", api.scan_raw, Row, RAW),
    ):
        app.add_api_route(
            path,
            run,
            methods=["POST"],
            operation_id=run.__name__,
            responses=RESPONSES | {200: FOUND | {"model": model}},
            response_class=JSONResponse,
            openapi_extra={"requestBody": {"required": True, "content": content}},
        )
    app.add_exception_handler(Refused, _refused)
    for kind in (RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _failed)
    app.openapi = lambda: _described(app, has_token)  # type: ignore[method-assign]
    return app


def _described(app: FastAPI, has_token: bool) -> Json:
    """Return the OpenAPI document."""
    document = get_openapi(
        title=app.title,
        version=app.version,
        description="Finds manipulated regions in photographs.",
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        routes=app.routes,
    )
    for path in document["paths"].values():  # FastAPI would leave the nulls out
        path["post"]["responses"]["200"]["content"]["application/json"]["example"] = EXAMPLE
    document["paths"]["/-/healthz"] = HEALTH
    if has_token:
        bearer = {"type": "http", "scheme": "bearer"}
        document["components"]["securitySchemes"] = {"bearer": bearer}
        document["security"] = [{"bearer": []}]
    return document
