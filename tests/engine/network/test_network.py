"""The whole network: trainable parameters, dependencies, and the position of the mask."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from prompt_iml.cluster.settings import Variant
from prompt_iml.cluster.training.variants import make_variant
from prompt_iml.engine.network.beyond.wide_stem import WideStem
from prompt_iml.engine.network.config import (
    PRESETS,
    DecoderConfig,
    JpegViewConfig,
    NetworkConfig,
    SwinConfig,
)
from prompt_iml.engine.network.decoder import DecoderLayer, attention_mask
from prompt_iml.engine.network.fusion import DeformableAttention, Fusion, cell_centres
from prompt_iml.engine.network.model import PromptIML
from prompt_iml.engine.network.stems import BayarKernel, HighFrequencyStem, PatchEmbedding

CPU = torch.device("cpu")
TINY = NetworkConfig(
    name="tiny",
    swin=SwinConfig(
        channels=8, depths=(2, 2, 2, 2), heads=(1, 2, 2, 4), windows=(4,) * 4, mlp_ratio=2
    ),
    prompts=2,
    decoder=DecoderConfig(
        hidden=16, heads=2, encoder_layers=1, encoder_ffn=32, decoder_layers=3, decoder_ffn=32
    ),
    jpeg_view=JpegViewConfig(),
)


def _tiny(seed: int = 0) -> PromptIML:
    torch.manual_seed(seed)
    return PromptIML(TINY)


def _batch(size: int, height: int = 64, width: int = 96) -> tuple[Tensor, Tensor]:
    """Return random images and tables."""
    random = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (size, height, width, 3), generator=random, dtype=torch.uint8)
    return image, torch.randint(1, 60, (size, 64), generator=random).double()


def _context(table: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Return tables and histograms of whole pictures."""
    histogram = torch.rand(len(table), 20, 16, generator=torch.Generator().manual_seed(2))
    return table.to(dtype), (histogram / histogram.sum(2, keepdim=True)).to(dtype)


@pytest.mark.parametrize(
    ("preset", "prompts", "limit"),
    [("prompt-iml-s", 45_120, 130e6), ("prompt-iml-micro", 2 * 4_160, 4.1e6)],
)
def test_parameter_counts(preset: str, prompts: int, limit: float) -> None:
    with torch.device("meta"):
        config = PRESETS[preset]
        network = PromptIML(config)
    assert sum(p.numel() for p in network.prompts) == prompts
    assert sum(p.numel() for p in network.parameters()) < limit


def test_weights_of_a_part_of_the_network_are_refused() -> None:
    """Headers of weights have the field since version 1."""
    assert TINY.to_dict()["fusion"] == "full"
    with pytest.raises(TypeError, match="fusion"):
        NetworkConfig.from_dict(TINY.to_dict() | {"fusion": "add"})


@pytest.mark.parametrize("config", [*PRESETS.values(), TINY], ids=lambda config: config.name)
def test_config_survives_json(config: NetworkConfig) -> None:
    assert NetworkConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_field_of_another_version_is_refused() -> None:
    with pytest.raises(TypeError, match="lora"):
        NetworkConfig.from_dict(TINY.to_dict() | {"lora": 4})


def test_shapes() -> None:
    image, table = _batch(2)
    mask_logits, score_logit = _tiny()(image, *_context(table))
    assert mask_logits.shape == (2, 16, 24)
    assert score_logit.shape == (2,)


COARSE = replace(TINY, swin=replace(TINY.swin, patch=8, windows=(4, 4, 4, 2)))


def test_patches_of_8_still_give_masks_at_stride_4() -> None:
    network, (image, table) = PromptIML(COARSE), _batch(1, 128, 64)
    assert network(image, *_context(table))[0].shape == (1, 32, 16)
    maps = network.extract(image, *_context(table))
    assert [x.shape[1:3] for x in maps] == [(16, 8), (8, 4), (4, 2), (2, 1)]


@pytest.mark.parametrize("patch", [4, 8])
def test_the_jpeg_view_joins_where_blocks_are_tokens(patch: int) -> None:
    """A change of the table alone changes the first fused map only with patches of 8."""
    torch.manual_seed(0)
    network = PromptIML(replace(COARSE, swin=replace(COARSE.swin, patch=patch))).eval()
    image, table = _batch(1, 128, 64)
    plain, other = (network.extract(image, *_context(t)) for t in (table, table + 9))
    changed = [not torch.equal(a, b) for a, b in zip(plain, other, strict=True)]
    assert changed == [patch == 8, True, True, True]


VARIANTS = pytest.mark.parametrize(
    ("variant", "idle"),
    [
        ("semantic", {"high_frequency", "jpeg_view", "fusion"}),
        ("high_frequency", {"prompts", "fusion"}),
        ("add", {"fusion"}),
        ("align", {"fusion"}),
        ("fuse", {"fusion"}),
        ("full", set()),
    ],
)


def _variant(variant: Variant) -> PromptIML:
    network = _tiny()
    make_variant(network, variant)
    return network


@VARIANTS
def test_a_variant_trains_what_it_uses(variant: Variant, idle: set[str]) -> None:
    """Every trainable parameter gets a gradient, since a distributed run would wait for it."""
    network, (image, table) = _variant(variant), _batch(2)
    masks, score = network.localize(network.extract(image, *_context(table)))
    (sum(mask.square().sum() for mask in masks) + score.sum()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name
    still = {n.split(".")[0] for n, p in network.named_parameters() if not p.requires_grad}
    assert still == idle | {"semantic"}


@VARIANTS
def test_weights_of_a_variant_start_the_whole(variant: Variant, idle: set[str]) -> None:
    assert list(_variant(variant).state_dict()) == list(_tiny().state_dict())


def test_one_branch_alone_fuses_nothing() -> None:
    network, (image, _) = _tiny(), _batch(1)
    normal = (image.permute(0, 3, 1, 2) - network.mean) / network.std
    expected = network.semantic(normal, list(network.prompts))
    found = _variant("semantic").extract(image)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_added_branches_are_added() -> None:
    network, sem, hfq = _variant("add"), torch.randn(1, 4, 4, 8), torch.randn(1, 4, 4, 8)
    fusion = network.fusion[0]
    assert isinstance(fusion, Fusion)
    fusion.gate_hfq.data.fill_(2)
    found = fusion(sem, hfq)
    expected = sem, hfq, 0.5 * fusion.norm_sem(sem) + 2 * fusion.norm_hfq(hfq)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_alignment_takes_from_the_values_before_it() -> None:
    """Equations 4 to 6 of the paper, computed for one channel and one cell at a time."""
    torch.manual_seed(0)
    fusion = Fusion(channels=2, heads=1, points=1).double()
    sem, hfq = torch.randn(2, 1, 12, 2).double()
    channel = fusion.channel_weights(torch.cat([sem.mean(1), hfq.mean(1)], 1))[0]
    spatial = fusion.spatial_weights(torch.cat([sem, hfq], 2))[0]
    new_sem, new_hfq = fusion.align(sem, hfq)
    for cell, c in np.ndindex(12, 2):
        s, h = sem[0, cell, c], hfq[0, cell, c]
        expected_sem = s + channel[2 + c] * h + spatial[cell, 1] * h
        expected_hfq = h + channel[c] * s + spatial[cell, 0] * s
        assert new_sem[0, cell, c].item() == pytest.approx(expected_sem.item())
        assert new_hfq[0, cell, c].item() == pytest.approx(expected_hfq.item())


def test_bytes_and_floats_are_the_same_image() -> None:
    network, (image, table) = _tiny(), _batch(1)
    found, expected = network(image.float(), *_context(table)), network(image, *_context(table))
    assert torch.equal(found[0], expected[0])


def test_an_image_does_not_depend_on_its_batch_mates() -> None:
    network, (image, table) = _tiny().double().eval(), _batch(3)
    context = _context(table, torch.float64)
    together = network(image, *context)
    for i in range(3):
        alone = network(image[i : i + 1], *(x[i : i + 1] for x in context))
        torch.testing.assert_close(together[0][i], alone[0][0])
        torch.testing.assert_close(together[1][i], alone[1][0])


@pytest.mark.parametrize("high_frequency_prompts", [0, 2])
def test_only_the_prompts_of_the_semantic_branch_train(high_frequency_prompts: int) -> None:
    torch.manual_seed(0)
    network = PromptIML(replace(TINY, high_frequency_prompts=high_frequency_prompts))
    image, table = _batch(2)
    for parameter in network.parameters():  # heads that start at zero pass no gradient
        parameter.data.add_(torch.randn_like(parameter), alpha=0.01)
    masks, score = network.localize(network.extract(image, *_context(table)))
    torch.autograd.backward(torch.stack(masks).square().sum() + score.square().sum())
    idle = {name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()}
    assert idle == {name for name, _ in network.named_parameters() if name.startswith("semantic.")}
    for prompts in network.prompts:
        assert prompts.grad is not None
        assert prompts.grad.abs().amax((1, 2)).gt(0).all()


def test_position_embedding_of_the_semantic_stem_trains() -> None:
    swin = SwinConfig(channels=8, depths=(1, 1), heads=(1, 1), windows=(4, 4), position_grid=8)
    network = PromptIML(NetworkConfig(name="position", swin=swin))
    training = [name for name, p in network.semantic.named_parameters() if p.requires_grad]
    assert training == ["patch_embed.position"]
    assert network.semantic.patch_embed(torch.zeros(1, 3, 64, 32)).shape == (1, 16, 8, 8)


def test_prompts_given_replace_the_networks_own() -> None:
    network, (image, table) = _tiny(), _batch(1)
    own, given = network(image, *_context(table)), list(network.prompts)
    assert torch.equal(network(image, *_context(table), prompts=given)[0], own[0])
    for stage in range(4):
        other = [torch.randn_like(p) if i == stage else p for i, p in enumerate(given)]
        assert not torch.allclose(network(image, *_context(table), prompts=other)[0], own[0])


def test_every_input_changes_the_output() -> None:
    network, (image, table) = _tiny(), _batch(1)
    tables, histogram = _context(table)
    mask, score = network(image, tables, histogram)
    for inputs in (
        (255 - image, tables, histogram),
        (image, 2 * tables, histogram),
        (image, tables, histogram.flip(2)),
    ):
        other = network(*inputs)
        assert not torch.allclose(other[0], mask)
        assert not torch.allclose(other[1], score)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("right", "down"), [(8, 0), (0, 8)])
def test_a_region_that_moves_takes_its_mask_along(right: int, down: int, seed: int) -> None:
    """Pasted noise changes the logits of an untrained network in its own place."""
    network = _tiny(seed)
    noise = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8)

    def centre(x: int, y: int) -> tuple[float, float]:
        image = torch.full((2, 192, 256, 3), 128, dtype=torch.uint8)
        image[1, y : y + 32, x : x + 32] = noise
        histogram = torch.full((2, 20, 16), 1 / 16)
        with torch.inference_mode():
            plain, pasted = network(image, torch.ones(2, 64), histogram)[0]
        change_HW = pasted - plain
        change_HW = (change_HW - change_HW.median()).abs()
        strength, place = change_HW.flatten().topk(40)
        column, row = place % 64 + 0.5, place // 64 + 0.5
        weight = strength / strength.sum()
        return 4 * float((weight * column).sum()), 4 * float((weight * row).sum())

    x, y = centre(96, 64)
    assert (x, y) == pytest.approx((112, 80), abs=8)
    assert centre(96 + right, 64 + down) == pytest.approx((x + right, y + down), abs=2)


def test_bayar_kernels_stay_constrained_through_training() -> None:
    torch.manual_seed(0)
    stem = HighFrequencyStem(4).double()
    optimiser = torch.optim.Adam(stem.parameters(), lr=0.1)
    for _ in range(5):
        before = stem.get_parameter("bayar.2.taps").clone()
        optimiser.zero_grad()
        residual = stem(torch.randn(1, 3, 32, 32).double())
        torch.autograd.backward((residual * torch.randn_like(residual)).sum())
        optimiser.step()
        assert not torch.equal(before, stem.get_parameter("bayar.2.taps"))
        for size, kernel in zip(stem.sizes, stem.bayar, strict=True):
            weights = kernel()
            assert weights.sum((2, 3)).abs().max() < 1e-12
            assert weights[:, :, size // 2, size // 2].eq(-1).all()


@pytest.mark.parametrize("total", [0.0, 1e-7, -1e-7])
def test_bayar_kernel_stays_bounded_where_taps_sum_to_zero(total: float) -> None:
    kernel = BayarKernel(3)
    kernel.taps.data.copy_(torch.tensor([1.0, -1, 0.5, -0.5, 0, 0, 0, total]))
    assert kernel().abs().max() < 1001


def test_high_frequency_stem_is_bayar_convolutions_then_patches() -> None:
    torch.manual_seed(0)
    stem, image = HighFrequencyStem(4).double(), torch.randn(2, 3, 24, 40).double()
    residuals = [
        functional.conv2d(image, kernel(), padding=size // 2)
        for size, kernel in zip(stem.sizes, stem.bayar, strict=True)
    ]
    patches = functional.conv2d(torch.cat(residuals, 1), stem.proj.weight, stem.proj.bias, stride=4)
    torch.testing.assert_close(stem(image), stem.norm(patches.permute(0, 2, 3, 1)))


def test_high_frequency_stem_gives_nothing_for_a_flat_image() -> None:
    stem = HighFrequencyStem(4).double()
    constant = torch.full((1, 3, 32, 32), 3.0).double()
    residual = functional.conv2d(constant, stem.kernel(), stride=4, padding=3)
    assert residual[:, :, 1:-1, 1:-1].abs().max() < 1e-12
    assert residual[:, :, 0].abs().max() > 1e-3  # the border itself is an edge


def test_high_frequency_stem_is_float32_under_autocast() -> None:
    stem, image = HighFrequencyStem(4), torch.randn(1, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(stem(image), stem(image).float())
        found = stem(image)
    torch.testing.assert_close(found, stem(image), atol=1e-6, rtol=0)


def test_new_blocks_of_the_stem_change_nothing() -> None:
    torch.manual_seed(0)
    stem, image = WideStem(4, 8, width=16), torch.randn(1, 3, 32, 32)
    grown = WideStem(4, 8, width=16, blocks=2)
    grown.load_state_dict(grown.state_dict() | stem.state_dict())
    assert torch.equal(grown(image), stem(image))


def test_both_stems_have_the_same_patches() -> None:
    image = torch.zeros(1, 3, 40, 56)
    image[:, :, 22, 30] = 1
    flat = torch.zeros_like(image)
    for stem in (PatchEmbedding(4), HighFrequencyStem(4)):
        change_HW = (stem(image) - stem(flat)).abs().sum((0, 3))
        assert divmod(int(change_HW.argmax()), 14) == (22 // 4, 30 // 4)


def test_cell_centres() -> None:
    expected = [[0.25, 0.125], [0.75, 0.125], [0.25, 0.375], [0.75, 0.375]]
    assert cell_centres(4, 2, CPU)[:4].tolist() == expected


@pytest.mark.parametrize(("right", "down"), [(0, 0), (1, 0), (0, 1), (2, -1)])
def test_deformable_attention_reads_where_its_offsets_say(right: int, down: int) -> None:
    torch.manual_seed(0)
    attention = DeformableAttention(channels=4, heads=2, levels=1, points=3)
    for projection in (attention.value_proj, attention.output_proj):
        torch.nn.init.eye_(projection.weight)
    attention.sampling_offsets.bias.data = torch.tensor([right, down] * 6).float()
    map_HWC = torch.randn(5, 7, 4)
    found = attention(
        torch.randn(1, 35, 4), cell_centres(5, 7, CPU), map_HWC.reshape(1, 35, 4), [(5, 7)]
    )
    expected = torch.roll(map_HWC, (-down, -right), (0, 1))[1:-2, 0:-2]
    torch.testing.assert_close(found.reshape(5, 7, 4)[1:-2, 0:-2], expected, atol=1e-5, rtol=0)


def test_deformable_attention_starts_by_reading_around() -> None:
    offsets = DeformableAttention(channels=8, heads=4, levels=2, points=3).sampling_offsets
    offsets_MLP2 = offsets.bias.detach().reshape(4, 2, 3, 2)
    assert not offsets.weight.any()
    torch.testing.assert_close(offsets_MLP2.norm(dim=-1), torch.tensor([1.0, 2, 3]).expand(4, 2, 3))
    torch.testing.assert_close(offsets_MLP2[1, 0, 0], torch.tensor([0.0, 1.0]))


def test_a_row_that_would_be_fully_masked_is_unmasked() -> None:
    mask_BHW = torch.full((2, 8, 8), -5.0)
    mask_BHW[1, 2:4, 6:8] = 5
    attend_BS = attention_mask(mask_BHW, (4, 4))
    assert attend_BS[0].all()
    assert attend_BS[1].nonzero().tolist() == [[1 * 4 + 3]]


def test_masked_places_are_not_read() -> None:
    torch.manual_seed(0)
    layer = DecoderLayer(DecoderConfig(hidden=16, heads=2, decoder_ffn=32))
    query, memory, position = torch.randn(1, 1, 16), torch.randn(1, 9, 16), torch.randn(9, 16)
    attend = torch.zeros(1, 1, 9, dtype=torch.bool)
    attend[..., 4] = True
    changed = memory.clone()
    changed[:, :4] += 1
    assert torch.equal(
        layer(query, query, memory, position, attend),
        layer(query, query, changed, position, attend),
    )
