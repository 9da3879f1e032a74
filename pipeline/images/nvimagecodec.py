"""Pixels of plain JPEG files by NVIDIA's nvImageCodec, on the GPU of the process.

Imported only where a setting asks for it. Never run on a GPU: tests run its CPU backend.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from prompt_iml.engine.errors import MissingDependency

NAME = "nvimagecodec"
PACKAGE = "nvidia-nvimgcodec-cu13"


def check_decoder(name: str) -> None:
    """Whether the package of a decoder is here, without loading it.

    Raises:
        MissingDependency: it is not.
    """
    if name == NAME and not (find_spec("nvidia") and find_spec("nvidia.nvimgcodec")):
        raise MissingDependency(
            f"decoder {NAME} needs a package that is not installed: pip install 'prompt-iml[gpu]'"
        )


def open_decoder(name: str) -> NvImageCodec | None:
    """What `decode` takes as `jpeg`: None for `pillow`.

    Without a GPU it is refused: it would be libjpeg again, and whoever forgot `--actor-gpus` would
    not know.

    Raises:
        MissingDependency: it is not installed, or does not decode on a GPU here.
    """
    check_decoder(name)
    if name != NAME:
        return None
    codec, file = NvImageCodec(), io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    with _silent():
        works = codec(file.getvalue()) is not None
    if not works:
        raise MissingDependency(
            f"decoder {NAME} finds no GPU, or a driver older than CUDA 13's: give each actor a "
            "GPU with --actor-gpus, or leave out --decoder"
        )
    return codec


class NvImageCodec:
    """Decodes whole JPEG files. Thread-safe: a decoder keeps state, so each thread has its own.

    Args:
        gpu: False decodes by libjpeg-turbo, as nvImageCodec brings it along; for tests.
    """

    def __init__(self, *, gpu: bool = True) -> None:
        os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")  # else a line for each refused file
        with _silent():
            from nvidia import nvimgcodec
        self._library, self._gpu = nvimgcodec, gpu
        self._of_thread = threading.local()
        self._params = nvimgcodec.DecodeParams(
            apply_exif_orientation=False,
            color_spec=nvimgcodec.ColorSpec.SRGB,
            allow_any_depth=False,
        )

    def __call__(self, payload: bytes) -> NDArray[np.uint8] | None:
        """(H, W, 3) uint8, read-only, in the stored frame; None when it gives none."""
        try:
            image = self._decoder().decode(payload, params=self._params)
            image = None if image is None else image.cpu()
        except (MemoryError, RuntimeError, ValueError):
            return None
        if image is None:
            return None
        pixels: NDArray[np.uint8] = np.asarray(image)
        pixels.flags.writeable = False
        return pixels

    def _decoder(self) -> Any:
        if not hasattr(self._of_thread, "decoder"):
            library, kinds = self._library, self._library.BackendKind
            on_gpu = (kinds.HW_GPU_ONLY, kinds.GPU_ONLY, kinds.HYBRID_CPU_GPU)
            current, none = library.NVIMGCODEC_DEVICE_CURRENT, library.NVIMGCODEC_DEVICE_CPU_ONLY
            self._of_thread.decoder = library.Decoder(
                device_id=current if self._gpu else none,
                max_num_cpu_threads=1,
                backends=[library.Backend(k) for k in (on_gpu if self._gpu else (kinds.CPU_ONLY,))],
                options=":fancy_upsampling=1 :fast_idct=0",  # as libjpeg has it
            )
        return self._of_thread.decoder


@contextmanager
def _silent() -> Iterator[None]:
    """Without the native library's lines on stderr, of codecs for other formats it would like."""
    stderr = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
