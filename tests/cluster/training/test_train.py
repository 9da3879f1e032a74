"""Parts of training: losses, schedule, teacher, checkpoints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from safetensors.torch import load_file, save_file
from skimage.transform import resize

from prompt_iml.cluster.pretraining.distill import (
    standardised,
    teacher_features,
    unexplained_variance,
)
from prompt_iml.cluster.pretraining.masked import MaskedPretraining, targets
from prompt_iml.cluster.pretraining.pretrain import varied
from prompt_iml.cluster.settings import TrainSettings
from prompt_iml.cluster.training.loop import Objective, Run, start_network
from prompt_iml.cluster.training.losses import score_loss, training_loss
from prompt_iml.cluster.training.schedule import learning_rate, weight_decay_groups
from prompt_iml.cluster.training.train import PLACE, _bind, _for_workers
from prompt_iml.engine.errors import UsageError
from prompt_iml.engine.network.config import PRESETS, JpegViewConfig, SwinConfig
from prompt_iml.engine.network.model import MEAN, STD, PromptIML

TEACHER = Path(__file__).parents[4] / "shared/data/backbones/mobilenet_v2_imagenet_f16.safetensors"

MICRO = PRESETS["prompt-iml-micro"]
TINY = replace(MICRO, swin=SwinConfig(8, (1, 1, 1, 1), (1, 1, 2, 2), (8,) * 4, mlp_ratio=1))


def _target() -> torch.Tensor:
    target = torch.zeros(2, 32, 32, dtype=torch.bool)
    target[0, 8:16, 8:24] = True
    return target


def _logits(target: torch.Tensor, size: float) -> torch.Tensor:
    return torch.where(target[:, ::4, ::4], size, -size).requires_grad_()


def test_loss_is_small_for_right_and_large_for_wrong_predictions() -> None:
    target, score = _target(), torch.tensor([20.0, -20.0])
    assert training_loss([_logits(target, 20.0)], score, target) < 1e-3
    assert training_loss([_logits(target, -20.0)], -score, target) > 10


def test_every_decoder_layer_gets_a_gradient() -> None:
    target = _target()
    masks = [_logits(target, 1.0) for _ in range(3)]
    training_loss(masks, torch.zeros(2), target).backward()
    assert all(mask.grad is not None and mask.grad.abs().sum() > 0 for mask in masks)


def test_loss_is_zero_for_an_authentic_image_without_detections() -> None:
    target = torch.zeros(1, 32, 32, dtype=torch.bool)
    loss = training_loss([torch.full((1, 8, 8), -20.0)], torch.tensor([-20.0]), target)
    assert loss < 1e-6


def test_only_the_variance_of_authentic_scores_is_penalised() -> None:
    authentic = torch.zeros(3, dtype=torch.bool)

    def beyond_entropy(score: torch.Tensor, forged: torch.Tensor) -> float:
        entropy = torch.nn.functional.binary_cross_entropy_with_logits(score, forged.float())
        return (score_loss(score, forged) - entropy).item()

    assert beyond_entropy(torch.tensor([-1.0, -1, -1]), authentic) == pytest.approx(0)
    assert beyond_entropy(torch.tensor([-1.0, -3, 0]), authentic) > 0.1
    assert beyond_entropy(torch.tensor([-1.0, 3, 0]), ~authentic) == 0
    assert beyond_entropy(torch.tensor([2.0]), authentic[:1]) == 0  # a variance of one is nan


def test_learning_rate_warms_up_and_decays() -> None:
    rates = [learning_rate(step / 100, highest=2.0) for step in range(101)]
    assert max(rates) == pytest.approx(2.0, rel=0.01)
    assert rates.index(max(rates)) == 5
    assert rates[-1] == pytest.approx(0.02)


def test_parameters_are_optimised_once_and_only_matrices_decay() -> None:
    network = PromptIML(MICRO)
    decay, others = (group["params"] for group in weight_decay_groups(network, 0.1))
    assert len({*map(id, decay), *map(id, others)}) == len(decay) + len(others)
    assert len(decay) + len(others) == sum(p.requires_grad for p in network.parameters())
    assert all(p.ndim >= 2 for p in decay)
    assert {id(p) for p in network.prompts} <= set(map(id, others))


def _step(run: Run) -> float:
    torch.manual_seed(0)
    image, mask = torch.randint(0, 255, (1, 64, 64, 3)), torch.ones(1, 64, 64, dtype=torch.bool)
    inputs = (
        image,
        torch.full((1, 64), 4.0),
        torch.full((1, 20, 16), 1 / 16),
        torch.rand(1, 6, 8, 8),
    )
    loss = Objective(run.network)(inputs, mask)
    run.step(loss, 1e-3)
    return loss.item()


def test_a_run_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    run, again = (Run(PromptIML(TINY)) for _ in range(2))
    _step(run)
    run.samples = 8
    for f1 in (0.5, 0.4, float("nan")):
        run.count_evaluation(f1)
    run.save(tmp_path)
    again.load(tmp_path)
    assert (again.samples, again.best, again.since_best) == (8, 0.5, 2)
    assert [_step(run) for _ in range(2)] == [_step(again) for _ in range(2)]


def test_a_network_without_prompts_has_all_gradients() -> None:
    """DDP waits for the gradient of every trainable parameter."""
    network = PromptIML(replace(TINY, prompts=0))
    _step(Run(network))
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)


def test_prompt_tuning_changes_only_prompts() -> None:
    network = PromptIML(TINY)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    _step(Run(network, "prompts"))
    moved = {n for n, t in network.state_dict().items() if not t.equal(before[n])}
    assert moved
    assert all(name.startswith("prompts.") for name in moved)


def test_parts_that_the_start_lacks_do_not_change_its_output(tmp_path: Path) -> None:
    small = PromptIML(
        replace(
            MICRO,
            stem_blocks=0,
            jpeg_view=JpegViewConfig(),
            match_map=False,
            high_frequency_prompts=0,
        )
    )
    save_file(small.state_dict(), tmp_path / "small.safetensors")
    larger = start_network(
        TrainSettings(photos="-", output="-", start=str(tmp_path / "small.safetensors"))
    )
    image, qtable = torch.rand(1, 256, 256, 3) * 255, torch.ones(1, 64)
    assert larger.config == MICRO
    with torch.no_grad():
        context = qtable, torch.full((1, 20, 16), 1 / 16), torch.rand(1, 6, 32, 32)
        found = larger(image, *context, list(larger.prompts)[:4])  # without those of the new branch
        assert torch.equal(found[0], small(image, *context)[0])


@pytest.mark.parametrize("add", [False, True])
def test_a_model_keeps_its_shape_without_add_new_parts(
    add: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, MICRO.name, replace(MICRO, stem_blocks=3))
    settings = TrainSettings(photos="-", output="-", start=MICRO.name, add_new_parts=add)
    assert (start_network(settings).config.stem_blocks == 3) == add


def test_an_unknown_preset_is_refused_with_the_names() -> None:
    settings = TrainSettings(photos="-", output="-", preset="prompt-iml-mikro")
    with pytest.raises(UsageError, match=r"prompt-iml-mikro: use one of .*prompt-iml-micro"):
        start_network(settings)


@pytest.mark.parametrize("output", ["gs://bucket/run", "az://bucket/run"])
def test_a_training_in_another_store_than_s3_is_refused(tmp_path: Path, output: str) -> None:
    settings = TrainSettings(photos=str(tmp_path), output=output)
    with pytest.raises(UsageError, match=f"--output {output}: use a local folder or s3://"):
        settings.check()


def test_crops_change_tones_and_are_blended() -> None:
    """Some flat crops are blended with crops that have an edge, and show it."""
    crops = np.full((40, 16, 16, 3), 128, np.uint8)
    crops[20:, :, :8] = 0
    seen = varied(crops, np.random.default_rng(0))
    assert (seen.dtype, seen.shape) == (np.uint8, crops.shape)
    assert len(np.unique(seen[:20, 0, -1, 0])) > 10
    edges = np.ptp(seen[:20].astype(int), axis=2).max((1, 2)) > 2
    assert 4 < edges.sum() < 16
    np.testing.assert_array_equal(seen, varied(crops, np.random.default_rng(0)))


def test_unexplained_variance_is_zero_for_the_teacher_and_one_for_a_constant() -> None:
    teacher = [torch.randn(2, 4, 4, 3) * 5 + 2]
    assert unexplained_variance([standardised(teacher[0])], teacher) == [0]
    assert unexplained_variance([torch.zeros(2, 4, 4, 3)], teacher) == [pytest.approx(1, abs=1e-3)]


def test_masked_error_is_the_distance_from_the_pixels() -> None:
    """A prediction of grey has no error on a grey photograph, and that of white on a white one."""
    pretraining = MaskedPretraining(MICRO.swin)
    for head in pretraining.heads:
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    grey = torch.tensor(MEAN).expand(2, 256, 256, 3) * 255
    white = (1 - torch.tensor(MEAN)) / torch.tensor(STD)
    assert [e.item() for e in pretraining.losses(grey)] == [pytest.approx(0, abs=1e-5)] * 4
    errors = pretraining.losses(torch.full((2, 256, 256, 3), 255.0))
    assert [e.item() for e in errors] == [pytest.approx(float(white.mean()), rel=1e-4)] * 4


def test_targets_keep_the_order_of_pixels() -> None:
    image = torch.arange(64.0).repeat(3, 64, 1)[None]
    assert torch.equal(targets(image, 8)[0, 0, :, :4], torch.arange(64.0).reshape(8, 4, 2).mean(-1))


@pytest.mark.skipif(not TEACHER.exists(), reason="needs ../shared/data/backbones")
def test_the_teacher_classifies_a_cat() -> None:
    weights = {name: tensor.float() for name, tensor in load_file(TEACHER).items()}
    cat = resize(skimage.data.chelsea()[:, 75:375], (224, 224), preserve_range=True)
    *_, last = features = teacher_features(weights, torch.from_numpy(cat).float()[None])
    assert [tuple(x.shape[1:]) for x in features] == [
        (56, 56, 24), (28, 28, 32), (14, 14, 96), (7, 7, 320)
    ]  # fmt: skip
    head = torch.relu(last @ weights["head.weight"][..., 0, 0].T + weights["head.bias"])
    logits = head.clamp(max=6).mean((1, 2)) @ weights["classifier.weight"][..., 0, 0].T
    assert 282 <= int((logits + weights["classifier.bias"]).argmax()) <= 286  # domestic cats


def test_a_run_of_an_earlier_version_resumes(tmp_path: Path) -> None:
    """The config.json of earlier versions has other names of some settings."""
    settings = TrainSettings(photos="-", output=f"file://{tmp_path}", learning_rate=0.01)
    earlier = {new: old for old, new in TrainSettings.renamed.items()}
    fields = settings.model_dump(exclude=PLACE)
    stored = {earlier.get(name, name): value for name, value in fields.items()}
    assert stored["peak"] == 0.01
    (tmp_path / "config.json").write_text(json.dumps(stored))
    _bind(settings)
    with pytest.raises(UsageError, match="holds a run with other learning_rate"):
        _bind(settings.model_copy(update={"learning_rate": 0.02}))


def test_workers_get_absolute_paths() -> None:
    files = ("start", "semantic_weights", "prompt_set", "labels")
    given = {name: f"{name}.safetensors" for name in files}
    folders = {name: name for name in ("photos", "negatives", "autoencoders")}
    settings = _for_workers(TrainSettings(output="-", **folders, **given))
    assert all(getattr(settings, name) == str(Path(name).absolute()) for name in folders)
    assert all(getattr(settings, name) == f"file://{Path(path).absolute()}"
               for name, path in given.items())  # fmt: skip
