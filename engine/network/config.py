"""The network's sizes, as frozen values that the metadata of weights stores.

**P** marks a statement of the paper (arXiv 2401.00653), with section and equation, and **C** our
choice where it is silent, with the reason. The file imports no torch, because a scan reads it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

# Headers of weights have this field since version 1; without it the weights' digest would change.
_WHOLE = {"fusion": "full"}
MATCH_FEATURES = 6  # channels of the matches, which `engine.detection.context` finds


@dataclass(frozen=True, slots=True)
class SwinConfig:
    """Sizes of one Swin branch; both branches have the same (P 3.2).

    Attributes:
        channels: C of the first stage; doubles from stage to stage.
        depths: blocks of each stage.
        heads: attention heads of each stage.
        windows: side of the attention windows of each stage, in tokens.
        mlp_ratio: width of a block's MLP, as a multiple of C.
        patch: stride of the stem, in pixels; each stage doubles it.
        position_grid: side of a learnable position embedding in the semantic stem; 0 = none.
    """

    channels: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    windows: tuple[int, ...]
    mlp_ratio: int = 4  # C: as Swin
    patch: int = 4  # P 3.2, as Swin
    position_grid: int = 0  # C: P eq. 1 has one; stock Swin, whose weights we load, has none

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """C of each stage."""
        return tuple(self.channels * 2**stage for stage in range(len(self.depths)))

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels between the tokens of each stage."""
        return tuple(self.patch * 2**stage for stage in range(len(self.depths)))


@dataclass(frozen=True, slots=True)
class JpegViewConfig:
    """Block-DCT histograms beside the high-frequency branch; not of the paper.

    Attributes:
        coefficients: number of the lowest AC coefficients, in zig-zag order.
        bins: number of histogram bins, for |c| = 0, 1, ... with the last one open.
        channels: number of channels inside the view.
        likelihood_ratios: add the log likelihood ratio of each coefficient between blocks that
            were saved once and twice.
    """

    coefficients: int = 20  # C: higher ones quantise to zero in most files
    bins: int = 16  # C: double compression shows in the gaps between small values
    channels: int = 64
    likelihood_ratios: bool = False


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Pixel decoder and transformer decoder with one query (P 3.3, as Mask2Former).

    Attributes:
        hidden: channels throughout.
        heads: heads of every attention.
        points: samples of each level and head of the deformable attention.
        encoder_layers: number of deformable layers of the pixel decoder.
        encoder_ffn: feed-forward width of these layers.
        decoder_layers: number of masked-attention layers; each reads the next of the three
            coarser maps, coarse to fine, in turn.
        decoder_ffn: feed-forward width of these layers.
    """

    hidden: int = 256  # C: all sizes are Mask2Former's, whose architecture P 3.3 takes
    heads: int = 8
    points: int = 4
    encoder_layers: int = 6
    encoder_ffn: int = 1024
    decoder_layers: int = 9  # three times over the three levels
    decoder_ffn: int = 2048


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """All sizes of the network, and the views of images that it takes.

    Attributes:
        name: name of the preset.
        swin: sizes of each branch.
        stem_width: channels between the two convolutions of the wide high-frequency stem; 0: the
            paper's stem.
        stem_blocks: number of residual blocks of 3x3 convolutions between those two.
        stem_inner: channels inside such a block; 0: `stem_width`.
        prompts: number n_p of prompt tokens in every window of every semantic block.
        high_frequency_prompts: the same for the blocks of the high-frequency branch.
        fusion_points: samples of each head of the deformable attention between the branches.
        decoder: sizes of the decoder.
        jpeg_view: the JPEG view, or None without it; with it the network takes `qtable` and
            `histogram`.
        match_map: add to the high-frequency branch the places where the picture repeats itself;
            with it the network takes `matches`.
        views: the views that suit the network, the preferred one first: `native` cuts an image
            into tiles without resizing, `fit` scales it to one tile.
        sides: allowed values of H and of W, in pixels, ascending; H and W may differ.
    """

    name: str
    swin: SwinConfig
    stem_width: int = 0  # P eq. 2
    stem_blocks: int = 0  # P eq. 2
    stem_inner: int = 0  # P eq. 2
    prompts: int = 5  # C: gives the 0.09 M that the paper's successor (MM) reports for two sets
    high_frequency_prompts: int = 0  # P 3.4: only the semantic branch has prompts
    fusion_points: int = 4  # C: the usual number for deformable attention
    decoder: DecoderConfig = DecoderConfig()
    jpeg_view: JpegViewConfig | None = None  # P: none
    match_map: bool = False  # P: none
    views: tuple[str, ...] = ("fit",)  # P 4.1: images are resized
    sides: tuple[int, ...] = (512,)  # P 4.1

    @property
    def prompt_shapes(self) -> list[tuple[int, int, int]]:
        """Shape of each prompt tensor (K, P, C): those of the semantic branch's layers, then those
        of the high-frequency branch's, if it has prompts."""
        counts = [
            self.prompts,
            *([self.high_frequency_prompts] * bool(self.high_frequency_prompts)),
        ]
        layers = list(zip(self.swin.depths, self.swin.stage_channels, strict=True))
        return [(depth, count, channels) for count in counts for depth, channels in layers]

    @property
    def input_names(self) -> list[str]:
        """Names of the graph's inputs but the prompts."""
        jpeg = ["qtable", "histogram"] if self.jpeg_view else []
        return ["image", *jpeg, *(["matches"] if self.match_map else [])]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON's types."""
        return asdict(self) | _WHOLE

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> NetworkConfig:
        """Return the config that `to_dict` wrote, also from JSON.

        Raises:
            TypeError: a field that this version does not know, or the config of a network of which
                a part was left out.
        """
        nested = {n: v for n, v in fields.items() if (n, v) not in _WHOLE.items()}
        nested["swin"] = SwinConfig(**_tuples(fields["swin"]))
        nested["decoder"] = DecoderConfig(**fields["decoder"])
        if fields["jpeg_view"] is not None:
            nested["jpeg_view"] = JpegViewConfig(**fields["jpeg_view"])
        return cls(**_tuples(nested))


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Turn JSON's lists back into tuples."""
    return {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}


PRESETS = {
    config.name: config
    for config in (
        NetworkConfig(
            name="prompt-iml-s",
            # C: Swin-S, as MM's 93.14 M for two backbones is 2 x 48,835,722 in units of 2^20
            swin=SwinConfig(
                channels=96, depths=(2, 2, 18, 2), heads=(3, 6, 12, 24), windows=(7,) * 4
            ),
            views=("fit", "native"),
        ),
        NetworkConfig(
            name="prompt-iml-micro",
            # C: as large as 10 images/s on 2 CPU cores allow. Patches of 8 leave a quarter of the
            # tokens and lie on JPEG's grid; a window of 16 at stride 16 contains both ends of a
            # copy-move; the windows divide every map of a side that is a multiple of 256, so that
            # nothing is padded
            swin=SwinConfig(
                channels=32,
                depths=(2, 4, 2, 1),
                heads=(1, 2, 4, 8),
                windows=(8, 16, 8, 4),
                mlp_ratio=2,
                patch=8,
            ),
            # C: a patch of 8 has 192 values and a token 32 channels, so a single linear map loses
            # the strength of the noise. After training the high-frequency branch alone on 2,400
            # samples, .30 of the authentic images had a mask; with a single linear map, .47
            stem_width=64,
            # C: traces of several kinds need more than one layer. With 64 channels inside the block
            # held-back forgeries were found as well, and a tile took a fifth longer
            stem_blocks=1,
            stem_inner=16,
            # C: prompts of the frozen branch alone moved the F1 of something new by .02
            high_frequency_prompts=5,
            decoder=DecoderConfig(
                hidden=64,
                heads=4,
                encoder_layers=1,
                encoder_ffn=256,
                decoder_layers=3,
                decoder_ffn=256,
            ),
            jpeg_view=JpegViewConfig(likelihood_ratios=True),
            match_map=True,
            views=("native",),
            sides=(256, 512),
        ),
    )
}
