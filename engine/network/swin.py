"""One branch: a Swin Transformer with prompts, from tokens to four maps of falling resolution.

Paper (P):
    3.2, equation 3: four layers of blocks, each self-attention then an MLP, both pre-norm and
        residual. This is the Swin Transformer (Liu et al., arXiv 2103.14030), with its windows,
        shifts and patch merging.
    3.4, equation 8: a block's own prompts are concatenated with its tokens, the same n_p prompts
        with those of every window (VPT-deep, Jia et al., arXiv 2203.12119).
Choices (C):
    Prompts enter as keys and values only. The output at a block's prompts (which the paper averages
        over windows) is not used, because the next block has prompts of its own.
    Prompts have no position: no relative-position bias, and they are in every shifted window.
    Parameters have the official Swin's names, so that its checkpoints load.
Letters: B images, H W rows and columns, S = H*W tokens, s pixels between the tokens of a layer,
C channels, N windows of all images (of a mask: of one image), T tokens of a window, M heads,
D channels of a head, K blocks of a layer, P prompts of a block.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from prompt_iml.engine.network.cells import Size, cells, grid
from prompt_iml.engine.network.config import SwinConfig


class Swin(nn.Module):
    """A stem and layers, with patch merging after each layer but the last."""

    def __init__(self, config: SwinConfig, patch_embed: nn.Module) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        last = len(config.depths) - 1
        self.layers = nn.ModuleList(
            SwinLayer(config, stage, merge=stage < last) for stage in range(last + 1)
        )
        self.apply(_init_weights)

    def forward(
        self, image_B3HW: Tensor, prompts: Sequence[Tensor | None] | None = None
    ) -> list[Tensor]:
        """Return each layer's map (B, H/s, W/s, C) before merging; `prompts` are (K, P, C) for each
        layer. Only pretraining calls it: `PromptIML` runs a fusion after each layer."""
        x_BHWC, outputs = self.patch_embed(image_B3HW), []
        for stage, layer in enumerate(self.stages()):
            outputs.append(layer(x_BHWC, prompts[stage] if prompts else None))
            x_BHWC = layer.downsample(outputs[-1])
        return outputs

    def stages(self) -> list[SwinLayer]:
        """Return the layers with their type."""
        return cast("list[SwinLayer]", list(self.layers))


class SwinLayer(nn.Module):
    """Blocks with plain and shifted windows in turn. The caller runs `downsample`."""

    def __init__(self, config: SwinConfig, stage: int, merge: bool) -> None:
        super().__init__()
        channels, heads = config.stage_channels[stage], config.heads[stage]
        self.window = window = config.windows[stage]
        self.blocks = nn.ModuleList(
            SwinBlock(channels, heads, window, window // 2 * (depth % 2), config.mlp_ratio)
            for depth in range(config.depths[stage])
        )
        self.downsample = PatchMerging(channels) if merge else nn.Identity()

    def forward(self, x_BHWC: Tensor, prompts_KPC: Tensor | None = None) -> Tensor:
        """Return (B, H, W, C), the tokens after all blocks."""
        x_BSC, size = cells(x_BHWC)
        height, width = (side + -side % self.window for side in size)
        mask_N1TT = shift_mask(height, width, self.window, x_BSC.device).to(x_BSC.dtype)
        if prompts_KPC is not None:
            mask_N1TT = functional.pad(mask_N1TT, (prompts_KPC.shape[1], 0))
        for depth, block in enumerate(self.blocks):
            prompts_PC = None if prompts_KPC is None else prompts_KPC[depth]
            x_BSC = block(x_BSC, size, prompts_PC, mask_N1TT)
        return grid(x_BSC, size)


class SwinBlock(nn.Module):
    """Window attention, then an MLP (P eq. 3)."""

    def __init__(self, channels: int, heads: int, window: int, shift: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, window, shift)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, channels * mlp_ratio)

    def forward(
        self, x_BSC: Tensor, size: Size, prompts_PC: Tensor | None, mask_N1TT: Tensor
    ) -> Tensor:
        """Return (B, S, C); `mask_N1TT` is that of `shift_mask`, with zeros for prompts."""
        if prompts_PC is not None:
            prompts_PC = self.norm1(prompts_PC)  # P eq. 8: normalised like the tokens
        z_BSC = x_BSC + self.attn(self.norm1(x_BSC), size, prompts_PC, mask_N1TT)
        y: Tensor = z_BSC + self.mlp(self.norm2(z_BSC))
        return y


class Mlp(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., C)."""
        y: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return y


class WindowAttention(nn.Module):
    """Self-attention in windows, with relative-position bias, shift, and prompts."""

    relative_position_index: Tensor

    def __init__(self, channels: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        index_TT = relative_position_index(window)
        self.register_buffer("relative_position_index", index_TT, persistent=False)

    def forward(
        self, x_BSC: Tensor, size: Size, prompts_PC: Tensor | None, mask_N1TT: Tensor
    ) -> Tensor:
        """Return (B, S, C); windows across the border are filled with zeros."""
        x_BHWC = grid(x_BSC, size)
        b, height, width, _ = x_BHWC.shape
        w, right, bottom = self.window, -width % self.window, -height % self.window
        if right or bottom:
            x_BHWC = functional.pad(x_BHWC, (0, 0, 0, right, 0, bottom))
        if self.shift:
            x_BHWC = torch.roll(x_BHWC, (-self.shift, -self.shift), (1, 2))
        windows = _split(x_BHWC, w)
        rows, columns = windows.shape[1:3]
        x_NTC = self.attend(windows.flatten(0, 2).flatten(1, 2), prompts_PC, mask_N1TT)
        windows = torch.unflatten(torch.unflatten(x_NTC, 1, (w, w)), 0, (b, rows, columns))
        x_BHWC = windows.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        if self.shift:
            x_BHWC = torch.roll(x_BHWC, (self.shift, self.shift), (1, 2))
        return cells(x_BHWC[:, :height, :width] if right or bottom else x_BHWC)[0]

    def attend(self, x_NTC: Tensor, prompts_PC: Tensor | None, mask_N1TT: Tensor) -> Tensor:
        """Return (N, T, C): attention within each window of all images."""
        qkv = torch.unflatten(self.qkv(x_NTC), 2, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.position_bias()[None]
        if prompts_PC is not None and prompts_PC.shape[0]:
            key, value = self.join_prompts(prompts_PC, key, value)  # P eq. 8
            bias = functional.pad(bias, (prompts_PC.shape[0], 0))
        if self.shift:
            bias = bias + mask_N1TT
        scores = query * query.shape[-1] ** -0.5 @ key.transpose(2, 3)
        # The bias is one for each window of an image, or one for all, and the same for each image.
        scores = (torch.unflatten(scores, 0, (-1, bias.shape[0])) + bias).flatten(0, 1)
        y: Tensor = self.proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
        return y

    def join_prompts(
        self, prompts_PC: Tensor, key_NMTD: Tensor, value_NMTD: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values (N, M, P + T, D): prompts, then tokens, of every window."""
        n, m, _, d = key_NMTD.shape
        p, c = prompts_PC.shape
        both_P2C = functional.linear(prompts_PC, self.qkv.weight[c:], self.qkv.bias[c:])
        both_2MPD = both_P2C.reshape(p, 2, m, d).permute(1, 2, 0, 3)
        key_P, value_P = both_2MPD[:, None].expand(2, n, m, p, d).unbind(0)
        return torch.cat([key_P, key_NMTD], 2), torch.cat([value_P, value_NMTD], 2)

    def position_bias(self) -> Tensor:
        """Return the relative-position bias, (M, T, T)."""
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)


class PatchMerging(nn.Module):
    """Merges four neighbouring tokens into one of twice the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """Return (B, H/2, W/2, 2C); odd sizes are rounded up."""
        right, bottom = -x_BHWC.shape[2] % 2, -x_BHWC.shape[1] % 2
        if right or bottom:
            x_BHWC = functional.pad(x_BHWC, (0, 0, 0, right, 0, bottom))
        squares = _split(x_BHWC, 2).transpose(3, 4)  # column by column, as in the official Swin
        x_BSC, size = cells(squares.flatten(3))
        return grid(self.reduction(self.norm(x_BSC)), size)


def _split(x_BHWC: Tensor, side: int) -> Tensor:
    """Split a map into squares, (B, H/side, W/side, side, side, C), each row by row."""
    x = torch.unflatten(torch.unflatten(x_BHWC, 2, (-1, side)), 1, (-1, side))
    return x.transpose(2, 3)


def relative_position_index(window: int) -> Tensor:
    """Return (T, T) int64: the row of the bias table for each pair of tokens of a window."""
    position_T = torch.arange(window * window)
    row, column = position_T // window, position_T % window
    rows_TT = row[:, None] - row[None, :] + window - 1
    columns_TT = column[:, None] - column[None, :] + window - 1
    return rows_TT * (2 * window - 1) + columns_TT


def shift_mask(height: int, width: int, window: int, device: torch.device) -> Tensor:
    """Return the mask of one image, (N, 1, T, T): -100 between tokens that only the shift has put
    into one window, else 0."""
    row = _rolled_in(height // window, window, device)[:, None, :, None]
    column = _rolled_in(width // window, window, device)[None, :, None, :]
    region_NT = (2 * row + column).flatten(0, 1).flatten(1, 2)
    apart_NTT = region_NT[:, :, None] != region_NT[:, None, :]
    return torch.where(apart_NTT, -100.0, 0.0)[:, None]


def _rolled_in(windows: int, window: int, device: torch.device) -> Tensor:
    """Return (windows, window) int: 1 in the part of the last window that wrapped around."""
    last = torch.arange(windows, device=device) == windows - 1
    late = torch.arange(window, device=device) >= window - window // 2
    return (last[:, None] & late[None, :]).long()


def load_official(branch: Swin, tensors: Mapping[str, Tensor]) -> None:
    """Load official Swin weights: an ImageNet checkpoint, or Mask2Former's backbone.

    The classification head, output norms, index and mask buffers are dropped, and if any name has
    the prefix `backbone.`, all names without it.

    Raises:
        ValueError: a parameter is missing, of another shape, or unknown.
    """
    prefix = "backbone."
    if any(name.startswith(prefix) for name in tensors):
        tensors = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    unused = re.compile(r"head\.|norm\d?\.|.*\.(attn_mask|relative_position_index)$")
    tensors = {name: tensor for name, tensor in tensors.items() if not unused.match(name)}
    own = {"patch_embed.position"}  # learned; no official checkpoint has one
    expected = {name: p.shape for name, p in branch.named_parameters() if name not in own}
    wrong = [
        f"{name}: {tuple(tensor.shape)}, need {tuple(expected[name])}"
        for name, tensor in tensors.items()
        if name in expected and tensor.shape != expected[name]
    ]
    wrong += [f"{name}: missing" for name in sorted(expected.keys() - tensors.keys())]
    wrong += [f"{name}: unknown" for name in sorted(tensors.keys() - expected.keys())]
    if wrong:
        more = f" (and {len(wrong) - 5} more)" if len(wrong) > 5 else ""
        raise ValueError(f"not this branch's Swin weights: {'; '.join(wrong[:5])}{more}")
    branch.load_state_dict(branch.state_dict() | dict(tensors))


def _init_weights(module: nn.Module) -> None:
    """Initialise a linear layer as Swin does."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
