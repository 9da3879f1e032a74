"""A branch against the reference Swin, official checkpoints, and prompts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from prompt_iml.cluster.settings import TrainSettings
from prompt_iml.cluster.training.loop import start_network
from prompt_iml.engine.errors import UsageError
from prompt_iml.engine.network.config import PRESETS, SwinConfig
from prompt_iml.engine.network.stems import PatchEmbedding
from prompt_iml.engine.network.swin import Swin, SwinBlock, WindowAttention, load_official

SWIN_S = PRESETS["prompt-iml-s"].swin
TO_OFFICIAL = (
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("embeddings.norm", "patch_embed.norm"),
    ("encoder.layers", "layers"),
    ("attention.relative_position_bias.", "attn."),
    ("attention.o_proj", "attn.proj"),
    ("attention.", "attn."),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("layernorm", "norm"),
)


def _branch(config: SwinConfig) -> Swin:
    return Swin(config, PatchEmbedding(config.channels))


def _official(reference: nn.Module) -> dict[str, Tensor]:
    """Return the reference's weights under the official names."""
    tensors = {}
    for name, tensor in reference.state_dict().items():
        for theirs, official in TO_OFFICIAL:
            name = name.replace(theirs, official)
        tensors[name] = tensor
    for query in [name for name in tensors if ".q_proj." in name]:
        parts = [tensors.pop(query.replace(".q_", f".{part}_")) for part in "qkv"]
        tensors[query.replace("q_proj", "qkv")] = torch.cat(parts)
    return tensors


@pytest.mark.parametrize(("height", "width"), [(64, 64), (50, 75), (36, 132)])
@pytest.mark.parametrize("window", [4, 5])
def test_without_prompts_equals_the_reference(window: int, height: int, width: int) -> None:
    torch.manual_seed(0)
    config = SwinConfig(
        channels=8, depths=(2, 1, 3), heads=(1, 2, 4), windows=(window,) * 3, mlp_ratio=2
    )
    options: dict[str, Any] = {
        "embed_dim": 8,
        "depths": [2, 1, 3],
        "num_heads": [1, 2, 4],
        "window_size": window,
        "mlp_ratio": 2,
        "drop_path_rate": 0.0,
        "out_features": ["stage1", "stage2", "stage3"],
    }
    reference = transformers.SwinBackbone(transformers.SwinConfig(**options)).double()
    for parameter in reference.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    branch = _branch(config).double()
    load_official(branch, _official(reference.swin))
    image = torch.randn(2, 3, height, width, dtype=torch.float64)
    expected = reference(image, output_hidden_states=True).hidden_states[1:]
    for found_BHWC, expected_BCHW in zip(branch(image), expected, strict=True):
        torch.testing.assert_close(found_BHWC.permute(0, 3, 1, 2), expected_BCHW)


def test_official_weights_are_what_training_starts_from(tmp_path: Path) -> None:
    weights = str(tmp_path / "swin.safetensors")
    settings = TrainSettings(photos="-", output="-", semantic_weights=weights)
    other = settings.model_copy(update={"semantic_weights": None, "seed": 1})
    branch = start_network(other).semantic
    official = {n: t for n, t in branch.state_dict().items() if n != "patch_embed.position"}
    save_file(official | {"head.weight": torch.zeros(3)}, str(settings.semantic_weights))
    started = start_network(settings).semantic.state_dict()
    assert all(torch.equal(started[name], official[name]) for name in official)
    save_file({"head.weight": torch.zeros(3)}, str(settings.semantic_weights))
    with pytest.raises(UsageError, match="not this branch's Swin weights"):
        start_network(settings)


def test_swin_s_has_the_parameters_of_swin_s() -> None:
    with torch.device("meta"):
        branch = _branch(SWIN_S)
    parameters = sum(parameter.numel() for parameter in branch.parameters())
    final_norm_and_head = 2 * 768 + 768 * 1000 + 1000
    assert parameters == 48_835_722
    assert parameters + final_norm_and_head == 49_606_258


def _swin_s_checkpoint() -> dict[str, tuple[int, ...]]:
    """Return tensors with names and shapes of the official ImageNet Swin-S at 224, window 7."""
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (96, 3, 4, 4),
        "patch_embed.proj.bias": (96,),
        **_norm("patch_embed.norm", 96),
        **_norm("norm", 768),
        **_linear("head", 768, 1000),
    }
    for i, (depth, heads) in enumerate([(2, 3), (2, 6), (18, 12), (2, 24)]):
        c = 96 * 2**i
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}"
            shapes |= _norm(f"{block}.norm1", c) | _norm(f"{block}.norm2", c)
            shapes |= _linear(f"{block}.attn.qkv", c, 3 * c) | _linear(f"{block}.attn.proj", c, c)
            shapes |= _linear(f"{block}.mlp.fc1", c, 4 * c) | _linear(f"{block}.mlp.fc2", 4 * c, c)
            shapes[f"{block}.attn.relative_position_bias_table"] = (169, heads)
            shapes[f"{block}.attn.relative_position_index"] = (49, 49)
            if j % 2 and i < 3:
                shapes[f"{block}.attn_mask"] = ((56 // 2**i // 7) ** 2, 49, 49)
        if i < 3:
            shapes |= _norm(f"layers.{i}.downsample.norm", 4 * c)
            shapes[f"layers.{i}.downsample.reduction.weight"] = (2 * c, 4 * c)
    return shapes


def _norm(name: str, c: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (c,), f"{name}.bias": (c,)}


def _linear(name: str, c: int, out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, c), f"{name}.bias": (out,)}


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_official_checkpoints_load(prefix: str) -> None:
    with torch.device("meta"):
        branch = _branch(SWIN_S)
    branch.to_empty(device="cpu")
    shapes = {prefix + name: shape for name, shape in _swin_s_checkpoint().items()}
    if prefix:  # Mask2Former has output norms, and other parts of a model
        shapes |= {f"backbone.norm{i}.weight": (96 * 2**i,) for i in range(4)}
        shapes |= {"sem_seg_head.predictor.query_feat.weight": (100, 256)}
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    tensors[f"{prefix}layers.2.blocks.17.mlp.fc2.bias"] += 7
    load_official(branch, tensors)
    assert branch.get_parameter("layers.2.blocks.17.mlp.fc2.bias").eq(7).all()
    assert not any(parameter[..., :5].any() for parameter in branch.layers[3].parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers.0.blocks.0.norm1.weight": None}, "layers.0.blocks.0.norm1.weight: missing"),
        ({"layers.0.blocks.0.lora": torch.ones(1)}, "layers.0.blocks.0.lora: unknown"),
        ({"patch_embed.norm.bias": torch.ones(9)}, "patch_embed.norm.bias: (9,), need (4,)"),
    ],
)
def test_other_weights_are_refused(change: dict[str, Tensor | None], message: str) -> None:
    branch = _branch(SwinConfig(channels=4, depths=(1,), heads=(1,), windows=(2,)))
    tensors = dict(branch.named_parameters()) | change
    with pytest.raises(ValueError, match=re.escape(message)):
        load_official(branch, {name: t for name, t in tensors.items() if t is not None})


def test_a_position_embedding_is_no_official_checkpoints() -> None:
    config = SwinConfig(channels=4, depths=(1,), heads=(1,), windows=(2,))
    branch = Swin(config, PatchEmbedding(4, position_grid=3))
    load_official(branch, dict(_branch(config).named_parameters()))
    assert branch.get_parameter("patch_embed.position").shape == (1, 4, 3, 3)


def test_prompts_are_read_as_tokens_without_position() -> None:
    """In one window without shift, the result is attention over prompts and tokens together."""
    torch.manual_seed(0)
    attention = WindowAttention(channels=6, heads=2, window=3, shift=0).double()
    nn.init.normal_(attention.relative_position_bias_table)
    tokens, prompts = torch.randn(2, 9, 6).double(), torch.randn(4, 6).double()
    row = torch.cat([prompts.expand(2, 4, 6), tokens], 1)
    query, key, value = attention.qkv(row).reshape(2, 13, 3, 2, 3).permute(2, 0, 3, 1, 4)
    bias = torch.zeros(2, 13, 13).double()
    bias[:, 4:, 4:] = attention.position_bias()
    attended = nn.functional.scaled_dot_product_attention(query, key, value, bias[None])
    expected = attention.proj(attended.transpose(1, 2).reshape(2, 13, 6))[:, 4:]
    found = attention(tokens, (3, 3), prompts, torch.zeros(1))
    torch.testing.assert_close(found, expected)


def test_prompts_are_normalised_like_tokens() -> None:
    torch.manual_seed(0)
    block = SwinBlock(channels=6, heads=2, window=3, shift=0, mlp_ratio=4)
    prompts, none = torch.randn(4, 6), torch.zeros(1)
    tokens = torch.randn(1, 9, 6), (3, 3)
    found, expected = block(*tokens, 7 * prompts + 3, none), block(*tokens, prompts, none)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert not torch.allclose(expected, block(*tokens, None, none))


def test_every_window_of_every_image_reads_the_prompts() -> None:
    torch.manual_seed(0)
    config = SwinConfig(channels=8, depths=(2,), heads=(2,), windows=(4,))
    branch, image = _branch(config), torch.randn(2, 3, 64, 64)
    prompts = [torch.randn(2, 3, 8)]
    change_BHWC = branch(image, prompts)[0] - branch(image)[0]
    assert change_BHWC.norm(dim=-1).min() > 1e-4
