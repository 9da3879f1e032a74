"""Train the autoencoders that `train --autoencoders` passes regions through.

    python -m prompt_iml.cluster.pretraining.autoencoders --photos DIR --output DIR [--steps 2000]

Eight variants are trained on the photographs that train, and three, whose files' names begin with
`held-back-`, on those that are held back; these differ in sizes and in the order of their
up-samplings, and are for evaluation only. Files that are there already are kept, so that the
command continues where it ended. Each variant's PSNR on held-back crops is printed.

Letters: B images, H W rows and columns.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from prompt_iml.cluster.pretraining.autoencoder import HELD_BACK, Autoencoder, Sizes, from_pixels
from prompt_iml.cluster.pretraining.pretrain import SIDE, crops
from prompt_iml.cluster.training.schedule import learning_rate, precision
from prompt_iml.pipeline.forgery.photos import list_photos, split

# In this order, so that the first few, which differ most, can be used soon.
VARIANTS: dict[str, Sizes] = {
    "nearest-8x-32": Sizes(("nearest",) * 3, 32, 16),
    "transposed-4x-24": Sizes(("transposed",) * 2, 24, 4),
    f"{HELD_BACK}mixed-4x-20": Sizes(("shuffle", "nearest"), 20, 6),
    "shuffle-8x-24": Sizes(("shuffle",) * 3, 24, 12),
    f"{HELD_BACK}nearest-8x-28": Sizes(("nearest",) * 3, 28, 14),
    "nearest-4x-24": Sizes(("nearest",) * 2, 24, 4),
    "transposed-8x-32": Sizes(("transposed",) * 3, 32, 16),
    "shuffle-4x-32": Sizes(("shuffle",) * 2, 32, 8),
    f"{HELD_BACK}mixed-8x-36": Sizes(("transposed", "nearest", "shuffle"), 36, 12),
    "nearest-8x-24": Sizes(("nearest",) * 3, 24, 8),
    "nearest-4x-40": Sizes(("nearest",) * 2, 40, 8),
}
CROPS = 1  # of 256 pixels in a step, each cut into quarters
EVALUATED = 16  # held-back crops
LEARNING_RATE, CLIP = 3e-3, 1.0
LATENT_NOISE = 0.1  # in training, so that decoders forgive the noise that edits add
EDGES, SPECTRUM = 0.5, 0.1  # weights of the losses that keep pictures sharp, beside L1
BLOCK = 16  # pixels: side of the blocks whose spectra are compared

Crops = Iterator[NDArray[np.uint8]]


def train(sizes: Sizes, stream: Crops, steps: int, seed: int) -> Autoencoder:
    """Train an autoencoder on crops (B, 256, 256, 3)."""
    torch.manual_seed(seed)
    autoencoder = Autoencoder(sizes)
    optimiser = torch.optim.AdamW(autoencoder.parameters(), betas=(0.9, 0.98))
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step / steps, LEARNING_RATE)
        image_B3HW = from_pixels(torch.from_numpy(quarters(next(stream))))
        h, w = (side // sizes.factor for side in image_B3HW.shape[2:])
        noise_BLhw = LATENT_NOISE * torch.randn(len(image_B3HW), sizes.latent, h, w)
        with precision("cpu"):
            decoded_B3HW = autoencoder(image_B3HW, noise_BLhw)
        optimiser.zero_grad()
        loss(decoded_B3HW.float(), image_B3HW).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(autoencoder.parameters(), CLIP)
        optimiser.step()
    return autoencoder.eval()


def loss(decoded_B3HW: Tensor, image_B3HW: Tensor) -> Tensor:
    """Return the L1 distances of pixels, of their differences, and of blocks' spectra, weighted.

    A spectrum's magnitude without its phase asks for detail of the right strength, where L1 alone
    would blur what it cannot place.
    """
    difference = decoded_B3HW - image_B3HW
    edges = torch.diff(difference, dim=2).abs().mean() + torch.diff(difference, dim=3).abs().mean()
    spectra = functional.l1_loss(_spectra(decoded_B3HW), _spectra(image_B3HW))
    return difference.abs().mean() + EDGES * edges + SPECTRUM * spectra


def _spectra(image_B3HW: Tensor) -> Tensor:
    blocks = image_B3HW.unfold(2, BLOCK, BLOCK).unfold(3, BLOCK, BLOCK)
    spectra: Tensor = torch.fft.rfft2(blocks, norm="ortho").abs()
    return spectra


def quarters(crops_BHW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cut crops into quarters: (4 B, H / 2, W / 2, 3)."""
    half = SIDE // 2
    corners = [(y, x) for y in (0, half) for x in (0, half)]
    return np.concatenate([crops_BHW3[:, y : y + half, x : x + half] for y, x in corners])


def psnr(autoencoder: Autoencoder, crops_BHW3: NDArray[np.uint8]) -> float:
    """Return the mean peak signal-to-noise ratio, in dB, of crops that passed through."""
    rng = np.random.default_rng(0)
    passed = np.stack([autoencoder.pass_through(crop, 0.0, rng) for crop in crops_BHW3])
    error_B = ((passed.astype(np.float64) - crops_BHW3) ** 2).mean((1, 2, 3))
    return float((10 * np.log10(255**2 / np.maximum(error_B, 1e-6))).mean())


def train_all(folder: Path, output: Path, steps: int, seed: int = 0) -> None:
    """Train the variants that `output` lacks on a folder of photographs; print each one's PSNR."""
    output.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    training, held_back = (crops(photos, CROPS, rng) for photos in split(list_photos(folder)))
    evaluated = np.concatenate([next(held_back) for _ in range(EVALUATED // CROPS)])
    for number, (name, sizes) in enumerate(VARIANTS.items()):
        path = output / f"{name}.safetensors"
        if not path.exists():
            stream = held_back if name.startswith(HELD_BACK) else training
            autoencoder = train(sizes, stream, steps, seed + number)
            print(f"{name} {psnr(autoencoder, evaluated):.2f} dB", flush=True)
            autoencoder.save(path)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    train_all(args.photos, args.output, args.steps, args.seed)


if __name__ == "__main__":
    main()
