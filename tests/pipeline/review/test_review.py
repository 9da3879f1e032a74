"""Decisions over HTTP become a truth, and none is lost; pictures come from where they lie."""

from __future__ import annotations

import base64
import hashlib
import io
import socket
import zipfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image
from starlette.testclient import TestClient

from prompt_iml.engine.errors import EmptySource, ImageError
from prompt_iml.pipeline.cli import main
from prompt_iml.pipeline.review.sources import Sources
from prompt_iml.pipeline.run.schema import image_id
from prompt_iml.pipeline.truth import read_labels
from prompt_iml.pipeline.truth.masks import load_mask
from prompt_iml.pipeline.truth.reviews import read_reviews, write_review
from tests.helpers.archives import TarOf
from tests.helpers.outputs import Row, commit, scored
from tests.helpers.reviewed import (
    POLICY,
    client_of,
    commit_many,
    label_of,
    review_of,
    session_on,
)
from tests.helpers.stores import Folder, Store

PICTURES = {"rocket.jpg": 0.85, "astronaut.jpg": 0.97, "coffee.webp": 0.05}


@pytest.fixture
def output(store: Store, photographs: Mapping[str, bytes], tar_of: TarOf) -> str:
    """A run of three pictures, one of them in a shard, and one that is gone."""
    shard = store.put("in/s.tar", tar_of({"b": b"b", "rocket.jpg": photographs["rocket.jpg"]}))
    rows = [scored(f"{store.uri}/in/gone.jpg", photographs["rocket.jpg"], 0.6, label="uncertain")]
    for name, score in PICTURES.items():
        data, in_shard = photographs[name], name == "rocket.jpg"
        uri = shard if in_shard else store.put(f"in/{name}", data)
        rows.append(scored(uri, data, score, name if in_shard else None, label_of(score)))
    rows[-1] |= {"mask_rle": None}
    threshold = {"threshold": POLICY["manipulated_at"]}
    commit(f"{store.uri}/out", [row | threshold for row in rows], policy=POLICY)
    return f"{store.uri}/out"


def queue(client: TestClient) -> dict[str, Row]:
    """Return the queue's pictures by name, in order."""
    return {each["name"]: each for each in client.get("/queue").json()["pictures"]}


def decide(client: TestClient, name: str, decision: str, **more: Any) -> Any:
    body = {"decision": decision, **more}
    return client.post(f"/decisions/{queue(client)[name]['id']}", json=body)


def sheet_url(mask: NDArray[np.bool_]) -> str:
    pixels = np.zeros((*mask.shape, 4), np.uint8)
    pixels[mask] = 255
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return "data:image/png;base64," + base64.b64encode(sink.getvalue()).decode()


def test_a_review_is_a_truth(output: str) -> None:
    client = client_of(session_on(output))
    pictures = queue(client)
    assert list(pictures) == ["rocket.jpg", "gone.jpg", "astronaut.jpg", "coffee.webp"]
    width, height = pictures["astronaut.jpg"]["sheet"]
    drawn = np.zeros((height, width), bool)
    drawn[5:50, 7:90] = True
    state = decide(client, "rocket.jpg", "manipulated", note="the moon").json()
    assert (state["decision"], state["note"]) == ("manipulated", "the moon")
    decide(client, "astronaut.jpg", "manipulated", mask=sheet_url(drawn))
    decide(client, "coffee.webp", "unsure")
    decide(client, "coffee.webp", "authentic")
    decide(client, "gone.jpg", "unsure")
    astronaut, coffee, rocket = read_labels(output)
    assert (coffee.label, rocket.member) == ("authentic", "rocket.jpg")
    assert astronaut.mask is not None
    assert rocket.mask is not None
    assert (load_mask(astronaut.mask) == drawn).all()
    found = load_mask(rocket.mask)
    assert found[10:60, 20:90].all()
    assert found.sum() == 50 * 70


def test_pictures_and_masks_come_through_the_server(output: str) -> None:
    client = client_of(session_on(output))
    for name, facts in queue(client).items():
        answer = client.get(f"/pictures/{facts['id']}")
        if name == "gone.jpg":
            assert answer.status_code == 404
            assert answer.json()["error"].startswith("not_found: ")
            continue
        with Image.open(io.BytesIO(answer.content)) as picture:
            assert list(picture.size) == facts["sheet"]
        mask = client.get(f"/masks/{facts['id']}")
        assert mask.status_code == (200 if facts["has_mask"] else 404)
        assert client.get(f"/heat/{facts['id']}").json()["error"].endswith("scan with --heatmap")


def zipped(data: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as file:
        file.writestr("rocket.jpg", data)
    return sink.getvalue()


def in_parquet(data: bytes) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": [data]}), sink)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("name", "member", "packed"),
    [("s.zip", "rocket.jpg", zipped), ("s.parquet", "0", in_parquet)],
)
def test_pictures_lie_in_other_shards_too(
    name: str, member: str, packed: Callable[[bytes], bytes], store: Store,
    photographs: Mapping[str, bytes],
) -> None:  # fmt: skip
    data = photographs["rocket.jpg"]
    row = scored(store.put(name, packed(data)), data, 0.5, member)
    commit(f"{store.uri}/out", [row])
    client = client_of(session_on(f"{store.uri}/out"))
    answer = client.get(f"/pictures/{row['image_id']}")
    assert answer.headers["content-type"] == "image/jpeg"


def test_a_shard_is_read_for_several_pictures_and_read_again_when_they_were_forgotten(
    folder: Folder, tar_of: TarOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {f"{number}.jpg": bytes([number]) * 100 for number in range(4)}
    shard = folder.put("s.tar", tar_of(members))
    rows = [
        {"image_id": image_id(shard, name), "uri": shard, "member": name, "size_bytes": 100,
         "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in members.items()
    ]  # fmt: skip
    config = {"images_per_unit": 8, "image_column": None, "max_object_bytes": 1000}
    read = [*members.values()]
    sources = Sources(rows, config, lambda: False)
    assert sources.read(rows[0]) == read[0]
    folder.remove("s.tar")
    assert [sources.read(row) for row in rows] == read
    with pytest.raises(ImageError):
        Sources(rows, config, lambda: False).read(rows[0])
    folder.put("s.tar", tar_of(members | {"1.jpg": b"another"}))
    for limit in ("KEPT_BYTES", "READ_BYTES"):
        monkeypatch.setattr(f"prompt_iml.pipeline.review.sources.{limit}", 200)
    sources = Sources(rows, config, lambda: False)
    assert [sources.read(rows[place]) for place in (0, 2, 3, 0)] == [read[i] for i in (0, 2, 3, 0)]
    with pytest.raises(ImageError, match="gone or has changed since the scan"):
        sources.read(rows[1])


def test_a_later_decision_counts_though_the_clock_went_back(folder: Folder) -> None:
    (row,) = commit_many(f"{folder.uri}/out", 1)
    ahead = datetime.now(UTC) + timedelta(days=1)
    early = review_of(row, "authentic", decided_at=ahead)
    write_review(f"{folder.uri}/out/reviews", early)
    client = client_of(session_on(f"{folder.uri}/out"))
    client.post(f"/decisions/{row['image_id']}", json={"decision": "mask_wrong"})
    (label,) = read_labels(f"{folder.uri}/out")
    assert label.label == "manipulated"


def test_an_undone_decision_does_not_count_and_the_file_stays(output: str) -> None:
    session = session_on(output)
    client = client_of(session)
    decide(client, "coffee.webp", "manipulated", mask=None)
    decide(client, "coffee.webp", "authentic")
    state = decide(client, "coffee.webp", "withdrawn").json()
    assert state["decision"] == ""
    assert session.decided == set()
    with pytest.raises(EmptySource):
        read_labels(output)
    assert len(read_reviews(f"{output}/reviews")) == 2  # the first had no mask


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"decision": "manipulated"}, "there is no mask: draw one"),
        ({"decision": "manipulated", "mask": "data:image/png;base64,AAAA"}, "is not a PNG"),
        ({"decision": "manipulated", "mask": "data:image/png;base64,*"}, "is not base64"),
        ({"decision": "manipulated", "mask": "https://example.org"}, "is not the data: URL"),
        (
            {"decision": "manipulated", "mask": sheet_url(np.ones((3, 3), bool))},
            "has (3, 3)",
        ),
        ({"decision": "manipulated", "mask": sheet_url(np.zeros((400, 600), bool))}, "is empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_decision_is_refused(
    body: Row, reason: str, folder: Folder, photographs: Mapping[str, bytes]
) -> None:
    data = photographs["coffee.webp"]
    row = scored(folder.put("coffee.webp", data), data, 0.5) | {"mask_rle": None}
    commit(f"{folder.uri}/out", [row])
    client = client_of(session_on(f"{folder.uri}/out"))
    answer = client.post(f"/decisions/{row['image_id']}", json=body)
    assert answer.status_code == 422
    assert reason in answer.json()["error"]
    assert read_reviews(f"{folder.uri}/out/reviews") == {}
    for path, wrong in ((row["image_id"], {"decision": "maybe"}), ("0", {"decision": "unsure"})):
        assert client.post(f"/decisions/{path}", json=wrong).status_code in (404, 422)


def test_reviewers_who_disagree_are_shown_to_each_other(output: str) -> None:
    ann, bob = (client_of(session_on(output, reviewer=name)) for name in ("ann", "bob"))
    decide(ann, "rocket.jpg", "manipulated")
    assert queue(bob)["rocket.jpg"]["said"] == []  # nobody is led by another's opinion
    decide(bob, "rocket.jpg", "authentic")
    said = [["ann", "manipulated"], ["bob", "authentic"]]
    assert queue(ann)["rocket.jpg"]["said"] == queue(bob)["rocket.jpg"]["said"] == said
    assert queue(ann)["rocket.jpg"]["decision"] == "manipulated"
    decide(bob, "rocket.jpg", "mask_wrong")
    assert queue(ann)["rocket.jpg"]["said"] == []


def test_a_mask_that_was_drawn_is_shown_again(
    folder: Folder, photographs: Mapping[str, bytes]
) -> None:
    data = photographs["rocket.jpg"]
    row = scored(folder.put("rocket.jpg", data), data, 0.5)
    commit(f"{folder.uri}/out", [row])
    drawn = np.zeros((row["height"], row["width"]), bool)
    drawn[:30, :40] = True
    client = client_of(session_on(f"{folder.uri}/out"))
    decide(client, "rocket.jpg", "manipulated", mask=sheet_url(drawn))
    again = client_of(session_on(f"{folder.uri}/out"))
    with Image.open(io.BytesIO(again.get(f"/masks/{row['image_id']}").content)) as sheet:
        assert (np.asarray(sheet.convert("RGBA"))[..., 3] == 255 * drawn).all()
    decide(again, "rocket.jpg", "manipulated", note="as drawn before")
    (label,) = read_labels(f"{folder.uri}/out")
    assert label.mask is not None
    assert (load_mask(label.mask) == drawn).all()


def test_wrong_commands_say_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = str(tmp_path / "out")
    commit_many(f"file://{output}", 3)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["review", output, "--no-browser", "--port", port]) == 2
    assert f"cannot listen on port {port}" in capsys.readouterr().err
    assert main(["review", output, "--run-id", "other"]) == 2
    assert "holds no run other" in capsys.readouterr().err
    assert main(["review", output, "--reviewer", ""]) == 2
    assert "--reviewer cannot be ''" in capsys.readouterr().err
    monkeypatch.setattr("prompt_iml.pipeline.cli.find_spec", lambda name: None)
    assert main(["review", output]) == 2
    message = "fastapi is not installed: pip install 'prompt-iml[review]'"
    assert message in capsys.readouterr().err
