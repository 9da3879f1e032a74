"""Small convolutional autoencoders, whose decoder leaves the traces of a generative model.

A latent diffusion model (Rombach et al., arXiv 2112.10752) makes a picture of small latents, and
the decoder of an autoencoder makes pixels of them: what it up-samples is what a detector can see of
such a picture. `python -m prompt_iml.cluster.pretraining.autoencoders` trains some.

Letters: B images, C channels, H W rows and columns, L latent channels, h w of the latents.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prompt_iml.engine.errors import UsageError

Upsampling = Literal["nearest", "transposed", "shuffle"]

HELD_BACK = "held-back-"  # prefix of the files that are for evaluation only
_METADATA = "autoencoder"


@dataclass(frozen=True, slots=True)
class Sizes:
    """Shape of an autoencoder.

    Attributes:
        upsampling: how the decoder doubles the size, once for each time, coarsest first.
        width: channels at half of the picture's size; twice as many below it.
        latent: channels of the latents.
    """

    upsampling: tuple[Upsampling, ...]
    width: int
    latent: int

    @property
    def factor(self) -> int:
        """Side of the square of pixels that has one latent."""
        return 1 << len(self.upsampling)

    def channels(self, level: int) -> int:
        """Return the channels where the sides are a 2 ** `level`th of the picture's."""
        return self.width // 2 if level == 0 else self.width if level == 1 else 2 * self.width


class Autoencoder(nn.Module):
    """Convolutional autoencoder with random weights."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        levels, lowest = len(sizes.upsampling), sizes.channels(len(sizes.upsampling))
        down, up = list[nn.Module](), list[nn.Module]()
        for level in range(levels):
            before = 3 if level == 0 else sizes.channels(level)
            down += [_convolution(before, sizes.channels(level + 1), stride=2), nn.SiLU()]
        for level, way in zip(reversed(range(levels)), sizes.upsampling, strict=True):
            up += [_doubling(way, sizes.channels(level + 1), sizes.channels(level)), nn.SiLU()]
        self.encoder = nn.Sequential(*down, Residual(lowest), _convolution(lowest, sizes.latent))
        self.decoder = nn.Sequential(
            _convolution(sizes.latent, lowest),
            *(Residual(lowest) for _ in range(2)),
            *up,
            _convolution(sizes.channels(0), 3),
        )
        self.apply(_initialise)

    def forward(self, image_B3HW: Tensor, noise_BLhw: Tensor | float) -> Tensor:
        """Return pictures after coding, in -1..1 like the input; sides are multiples of the factor.

        Args:
            image_B3HW: RGB, -1..1.
            noise_BLhw: added to the latents, in their standard deviations.
        """
        latent_BLhw = self.encoder(image_B3HW)
        decoded_B3HW: Tensor = self.decoder(latent_BLhw + noise_BLhw * latent_BLhw.std())
        return decoded_B3HW

    @torch.no_grad()
    def pass_through(
        self, pixels: NDArray[np.uint8], noise: float, rng: np.random.Generator
    ) -> NDArray[np.uint8]:
        """Encode and decode RGB (H, W, 3) of any size, in one thread.

        Args:
            pixels: mirrored at the right and lower edge up to multiples of the factor.
            noise: standard deviation of what is added to the latents, in their own.
            rng: source of that noise.
        """
        height, width = pixels.shape[:2]
        factor = self.sizes.factor
        whole = np.pad(pixels, ((0, -height % factor), (0, -width % factor), (0, 0)), "symmetric")
        image_B3HW = from_pixels(torch.from_numpy(whole)[None])
        small = whole.shape[0] // factor, whole.shape[1] // factor
        noise_BLhw = rng.normal(0, noise, (1, self.sizes.latent, *small)).astype(np.float32)
        with _one_thread():
            decoded_B3HW = self(image_B3HW, torch.from_numpy(noise_BLhw))
        decoded_HW3 = ((decoded_B3HW[0].permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255)
        passed: NDArray[np.uint8] = decoded_HW3.to(torch.uint8).numpy()
        return passed[:height, :width]

    def save(self, path: Path) -> None:
        """Write weights and sizes to a safetensors file, which is there only once it is whole."""
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        part = path.with_suffix(".part")
        save_file(tensors, part, {_METADATA: json.dumps(asdict(self.sizes))})
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> Autoencoder:
        """Read an autoencoder that `save` wrote.

        Raises:
            UsageError: the file is none.
        """
        try:
            with safe_open(path, "pt") as file:
                sizes = json.loads(file.metadata()[_METADATA])
            sizes["upsampling"] = tuple(sizes["upsampling"])
            autoencoder = cls(Sizes(**sizes))
            autoencoder.load_state_dict(load_file(path))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            line = " ".join(str(error).split())[:200]
            raise UsageError(f"{path} is no autoencoder: {line}; {_HINT}") from error
        return autoencoder.eval()


_HINT = "make some with python -m prompt_iml.cluster.pretraining.autoencoders"


def read_autoencoders(folder: str | None, held_back: bool = False) -> list[Autoencoder]:
    """Read the autoencoders of a folder by name: those to train with, or those to evaluate with.

    Returns:
        None of them where there is no folder.

    Raises:
        UsageError: the folder has none, or a file is none.
    """
    if folder is None:
        return []
    paths = sorted(Path(folder).glob("*.safetensors"))
    paths = [path for path in paths if path.name.startswith(HELD_BACK) == held_back]
    if not paths:
        name = f"{HELD_BACK if held_back else ''}*.safetensors"
        raise UsageError(f"--autoencoders {folder} has no {name}: {_HINT}")
    return [Autoencoder.load(path) for path in paths]


def from_pixels(image_BHW3: Tensor) -> Tensor:
    """Return RGB (B, H, W, 3) in 0..255 as (B, 3, H, W) in -1..1."""
    return (image_BHW3 / 127.5 - 1).permute(0, 3, 1, 2)


class Residual(nn.Module):
    """Two convolutions, added to their input (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _convolution(channels, channels)
        self.second = _convolution(channels, channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return a map of the same shape."""
        inner_BCHW: Tensor = self.second(nn.functional.silu(self.first(x_BCHW)))
        return x_BCHW + inner_BCHW


def _initialise(layer: nn.Module) -> None:
    """Keep the size of signals through many layers without norms (He et al., arXiv 1502.01852)."""
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        # Each output of a transposed convolution of stride 2 sees a quarter of the kernel.
        taps = layer.weight[0, 0].numel() // (4 if isinstance(layer, nn.ConvTranspose2d) else 1)
        nn.init.normal_(layer.weight, 0, (2 / (layer.in_channels * taps)) ** 0.5)
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # each has one
    if isinstance(layer, Residual):  # its own convolutions come first
        with torch.no_grad():
            layer.second.weight.mul_(0.5)


def _convolution(before: int, after: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride, padding=1)


def _doubling(way: Upsampling, before: int, after: int) -> nn.Module:
    """Return a layer that doubles the height and width."""
    if way == "transposed":
        return nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)
    if way == "shuffle":
        return nn.Sequential(_convolution(before, 4 * after), nn.PixelShuffle(2))
    return nn.Sequential(nn.Upsample(scale_factor=2), _convolution(before, after))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread, so that the same input gives the same output on every machine's cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
