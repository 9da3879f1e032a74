"""Overlapping batches on a device that reorders all work which no stream or event orders."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from prompt_iml.engine.detection.context import whole_pictures
from prompt_iml.engine.detection.detector import Detector, Finding
from prompt_iml.engine.detection.image import Image
from prompt_iml.engine.detection.views import View
from prompt_iml.engine.errors import DeviceFull, InferError
from prompt_iml.engine.model.folder import Model, load_model
from prompt_iml.engine.model.policy import UNTRAINED
from prompt_iml.engine.model.prompts import PromptSet
from prompt_iml.engine.runtimes.overlap import BUFFER_SETS, OverlappingEngine
from prompt_iml.engine.runtimes.protocol import Batch, Detection, Done, Engine, Pending
from tests.helpers.null_device import HostProgram, NullDevice

VIEW = View("native")


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("prompt-iml-micro")


@dataclass
class Sum(Engine):
    """An engine whose output identifies its input: the mean red of cells and image."""

    name: str = "sum"

    def load_prompts(self, prompts: PromptSet) -> None:
        raise NotImplementedError

    def submit(self, batch: Batch) -> Done:
        n, height, width, _ = batch.image.shape
        cells = batch.image[..., 0].reshape(n, height // 4, 4, width // 4, 4).astype(np.float32)
        masks = cells.mean((2, 4))
        return Done(Detection(masks, masks.mean((1, 2)) + batch.qtable[:, 0]))


def batches(count: int, size: int = 2) -> list[Batch]:
    rng = np.random.default_rng(0)
    return [
        whole_pictures(
            rng.integers(0, 256, (size, 256, 256 * (1 + n % 2), 3), np.uint8),
            1 + rng.random((size, 64), np.float32),
        )
        for n in range(count)
    ]


def same(found: Detection, expected: Detection) -> bool:
    return np.array_equal(found.mask_logits, expected.mask_logits) and np.array_equal(
        found.score_logit, expected.score_logit
    )


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_pending_batches_do_not_mix(model: Model, seed: int, graphs: bool) -> None:
    device = NullDevice(seed)
    engine = OverlappingEngine(model, device, HostProgram(Sum(), 2), graphs)
    work, pending = batches(24), list[Pending]()
    for number, batch in enumerate(work):
        pending.append(engine.submit(batch))
        if len(pending) == BUFFER_SETS:
            assert same(pending.pop(0).result(), Sum().run(work[number - 1]))
    assert device.launches == (20 if graphs else 0)  # all but two runs of each shape


def test_uploads_go_on_while_the_network_computes(model: Model) -> None:
    device = NullDevice(1)
    engine = OverlappingEngine(model, device, HostProgram(Sum(), 2))
    pending = [engine.submit(batch) for batch in batches(2)]
    for each in pending:
        each.result()
    assert device.overlapped


def test_a_result_can_be_read_twice(model: Model) -> None:
    engine = OverlappingEngine(model, NullDevice(), HostProgram(Sum(), 2))
    first, second = batches(1)[0], batches(3)[2]
    pending = engine.submit(first)
    assert same(pending.result(), Sum().run(first))
    engine.run(second)  # in the buffers of the first batch
    assert same(pending.result(), Sum().run(first))


def test_a_missing_wait_would_be_seen(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NullDevice, "wait", lambda *_: None)
    engine = OverlappingEngine(model, NullDevice(2), HostProgram(Sum(), 2))
    work = batches(12)
    assert not all(same(engine.run(batch), Sum().run(batch)) for batch in work)


def test_buffers_of_a_pending_batch_are_not_reused(model: Model) -> None:
    engine = OverlappingEngine(model, NullDevice(), HostProgram(Sum(), 2))
    batch = batches(1)[0]
    for _ in range(BUFFER_SETS):
        engine.submit(batch)
    with pytest.raises(InferError, match="pending"):
        engine.submit(batch)


def images(count: int) -> list[tuple[int, Image]]:
    rng = np.random.default_rng(1)
    sizes = [(256, 256), (512, 512), (700, 500)]
    return [(n, Image(rng.integers(0, 256, (*sizes[n % 3], 3), np.uint8))) for n in range(count)]


def findings(detector: Detector, count: int = 20) -> dict[int, float]:
    found = dict(detector.detect(images(count)))
    assert all(isinstance(finding, Finding) for finding in found.values())
    return {n: finding.score_raw for n, finding in found.items() if isinstance(finding, Finding)}


@pytest.mark.parametrize("fits", [8, 5, 1])
def test_a_scan_finds_the_same_whatever_fits_on_the_device(model: Model, fits: int) -> None:
    program = HostProgram(Sum(), 8, fits)
    engine = OverlappingEngine(model, NullDevice(), program)
    detector = Detector(engine, VIEW, UNTRAINED, engine.batch)
    assert findings(detector) == findings(Detector(Sum(), VIEW, UNTRAINED))
    assert {8: 8, 5: 4, 1: 1}[fits] == max(n for n, *_ in program.shapes)


def test_what_does_not_fit_alone_fails_alone(model: Model) -> None:
    tile = 512 * 512 * 3
    engine = OverlappingEngine(model, NullDevice(room=tile - 1), HostProgram(Sum(), 4))
    found = dict(Detector(engine, VIEW, UNTRAINED, 4).detect(images(6)))
    failed = [n for n, finding in found.items() if isinstance(finding, DeviceFull)]
    assert failed == [1, 2, 4, 5]
