"""The guard of the review's server: who is refused, and what every answer carries."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from prompt_iml.pipeline.review.server import make_app
from prompt_iml.pipeline.truth.reviews import read_reviews
from tests.helpers.outputs import Row
from tests.helpers.reviewed import ORIGIN, PORT, TOKEN, commit_many, session_on
from tests.helpers.stores import Folder

REFUSED: dict[str, tuple[Row, int]] = {
    "no token": ({"cookies": {}}, 403),
    "wrong token": ({"cookies": {f"prompt-iml-review-{PORT}": "secre"}}, 403),
    "name of a stranger": ({"headers": {"host": f"example.org:{PORT}"}}, 421),
    "another port": ({"headers": {"host": "127.0.0.1:1"}}, 421),
    "page of a stranger": ({"headers": {"origin": "http://example.org"}}, 403),
    "no origin": ({"headers": {"origin": ""}}, 403),
    "origin null": ({"headers": {"origin": "null"}}, 403),
    "too large": ({"headers": {"content-length": str(1 << 40)}}, 413),
    "no length": ({"content": iter([b"{}"])}, 413),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_stranger_is_refused(name: str, folder: Folder) -> None:
    (row, *_) = commit_many(f"{folder.uri}/out", 3)
    session = session_on(f"{folder.uri}/out")
    options, status = REFUSED[name]
    cookies = options.get("cookies", {f"prompt-iml-review-{PORT}": TOKEN})
    client = TestClient(make_app(session, PORT, TOKEN), base_url=ORIGIN, cookies=cookies)
    headers = {"origin": ORIGIN} | options.get("headers", {})
    body = {"content": options.get("content", b'{"decision": "unsure"}')}
    path = f"/decisions/{row['image_id']}"
    assert client.post(path, headers=headers, **body).status_code == status
    assert read_reviews(f"{folder.uri}/out/reviews") == {}
    if status != 413 and "origin" not in options.get("headers", {}):
        for path in ("/", "/page.js", "/queue", f"/pictures/{row['image_id']}"):
            assert client.get(path, headers=headers).status_code == status, path


def test_the_link_gives_a_cookie_and_every_answer_is_guarded(folder: Folder) -> None:
    commit_many(f"{folder.uri}/out", 3)
    session = session_on(f"{folder.uri}/out")
    client = TestClient(make_app(session, PORT, TOKEN), base_url=ORIGIN)
    assert client.get("/?token=wrong").status_code == 403
    page = client.get(f"/?token={TOKEN}")
    cookie = page.headers["set-cookie"]
    assert cookie == f"prompt-iml-review-{PORT}={TOKEN}; HttpOnly; SameSite=Strict; Path=/"
    for path in ("/", "/page.css", "/page.js", "/queue", "/pictures/0", "/nothing"):
        answer = client.get(path)
        assert "set-cookie" not in answer.headers
        assert answer.headers["content-security-policy"].startswith("default-src 'none'; ")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
    for path in ("/docs", "/openapi.json", "/..%2f..%2freview.py"):
        assert client.get(path).status_code == 404
