"""The cache of compiled networks: whole blobs, from this user alone, with the same results."""

from __future__ import annotations

import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import openvino
import pytest

from prompt_iml.engine.detection.context import whole_pictures
from prompt_iml.engine.errors import UsageError
from prompt_iml.engine.model.folder import load_model
from prompt_iml.engine.runtimes.blob_cache import PLAN, BlobCache
from prompt_iml.engine.runtimes.openvino import OpenVinoEngine


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROMPT_IML_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_stored_blob_is_read_back(folder: Path) -> None:
    BlobCache().write("a", b"blob")
    assert BlobCache().read("a") == b"blob"
    assert BlobCache().read("b") is None
    assert [path.name for path in folder.iterdir()] == ["a.blob"]
    assert folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:-1] + b"?", lambda b: b""])
def test_a_damaged_blob_is_none(folder: Path, damage: object) -> None:
    BlobCache().write("a", b"blob")
    path = folder / "a.blob"
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    assert BlobCache().read("a") is None


def test_a_folder_that_others_can_write_to_is_not_read(folder: Path) -> None:
    BlobCache().write("a", b"blob")
    folder.chmod(0o770)
    assert BlobCache().read("a") is None


def test_only_blobs_unused_for_long_are_removed(folder: Path) -> None:
    BlobCache().write("old", b"blob")
    (folder / "letter.txt").write_bytes(b"text")
    for path in folder.iterdir():
        os.utime(path, (0, 0))
    BlobCache().write("new", b"blob")
    assert {path.name for path in folder.iterdir()} == {"letter.txt", "new.blob"}


def test_the_least_recently_used_make_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_IML_CACHE_GIB", str(250 / 2**30))
    BlobCache(kind=PLAN).write("plan", bytes(1000))
    for number, name in enumerate("abc"):
        BlobCache().write(name, bytes(50))
        os.utime(folder / f"{name}.blob", (now := time.time() - 10 + number, now))
    BlobCache().read("a")
    BlobCache().write("d", bytes(50))
    assert {path.stem for path in folder.glob("*.blob")} == {"a", "c", "d"}
    assert BlobCache(kind=PLAN).read("plan") == bytes(1000)
    BlobCache().write("large", bytes(300))
    assert not list(folder.glob("*.blob"))


@pytest.mark.parametrize("size", ["many", "-1", "nan", "inf"])
def test_a_limit_that_is_no_size_is_refused(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_IML_CACHE_GIB", size)
    with pytest.raises(UsageError, match="PROMPT_IML_CACHE_GIB"):
        BlobCache()


def test_many_processes_write_read_and_make_room_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMPT_IML_CACHE_GIB", str(2e6 / 2**30))
    with ProcessPoolExecutor(4, get_context("spawn")) as pool:
        written = list(pool.map(_write_and_read, range(4)))
    assert min(written) > 0  # in none did another's removal hide what was just written, each time
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 2e6
    assert {path.suffix for path in folder.iterdir()} == {".blob"}


def _write_and_read(process: int) -> int:
    """Write blobs that soon have no room; return how many could be read back, whole."""
    found = 0
    for number in range(100):
        blob = bytes([process]) * 200_000
        BlobCache().write(f"{process}-{number % 10}", blob)
        again = BlobCache().read(f"{process}-{number % 10}")
        assert again in (None, blob)
        found += again is not None
    return found


def test_an_engine_whose_blob_made_room_compiles_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMPT_IML_CACHE_GIB", "0.04")  # room for one compiled network, not two
    model, pixels = load_model("prompt-iml-micro"), np.zeros((1, 256, 512, 3), np.uint8)
    table, found = np.ones((1, 64), np.float32), []
    for image in (pixels[:, :, :256], pixels.transpose(0, 2, 1, 3), pixels[:, :, :256]):
        batch = whole_pictures(np.ascontiguousarray(image), table)
        found.append(OpenVinoEngine(model, threads=1).run(batch))
        (blob,) = folder.iterdir()
        assert 1e7 < blob.stat().st_size < 0.04 * 2**30
    np.testing.assert_array_equal(found[0].mask_logits, found[2].mask_logits)


def test_a_user_without_a_home_caches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PROMPT_IML_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # a container's user without a name
    BlobCache().write("a", b"blob")
    assert BlobCache().read("a") is None


def test_a_folder_that_cannot_be_written_caches_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = BlobCache(tmp_path / "file")
    cache.write("a", b"blob")
    assert cache.read("a") is None


def test_a_cached_engine_finds_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model("prompt-iml-micro")
    pixels = np.random.default_rng(0).integers(0, 256, (1, 256, 256, 3), np.uint8)
    batch = whole_pictures(pixels, np.ones((1, 64), np.float32))
    compiled = OpenVinoEngine(model, threads=1).run(batch)
    with monkeypatch.context() as patch:
        patch.delattr(openvino.Core, "compile_model")
        patch.delattr(openvino.Core, "read_model")
        kept = OpenVinoEngine(model, threads=1).run(batch)
    np.testing.assert_array_equal(kept.mask_logits, compiled.mask_logits)
    np.testing.assert_array_equal(kept.score_logit, compiled.score_logit)
    (blob,) = folder.iterdir()
    blob.write_bytes(blob.read_bytes()[:-1])
    again = OpenVinoEngine(model, threads=1).run(batch)
    np.testing.assert_array_equal(again.mask_logits, compiled.mask_logits)
