"""Memory of a process that scans pictures of large cameras."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.bench.null_model import write_null_model

ALONE, ONE_OF_MANY = 12, 27  # bytes a pixel: others are decoded while one is scanned
SMALL = 500, 500  # of a picture that shows what the process takes on this machine
SCAN = """
import sys
from pathlib import Path
from prompt_iml.pipeline.cli import main
main(["scan", *sys.argv[1:]])
peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
print(int(peak) * 1024, file=sys.stderr)
"""

pytestmark = [
    pytest.mark.fast,
    pytest.mark.skipif(sys.platform != "linux", reason="the peak is Linux's VmHWM"),
]


def _photograph(file: Path, size: tuple[int, int]) -> Path:
    tile = np.random.default_rng(0).integers(0, 256, (500, 500, 3), np.uint8)
    picture = Image.new("RGB", size)
    for top in range(0, size[1], 500):
        for left in range(0, size[0], 500):
            picture.paste(Image.fromarray(tile), (left, top))
    picture.save(file, quality=30)
    return file


def _peak(folder: Path, size: tuple[int, int], copies: int = 1) -> int:
    """Return the most memory, in bytes, of a scan of `copies` pictures of a size, all masked."""
    model = write_null_model(folder / "model", logit=8)  # all is masked, which takes the most
    files = [_photograph(folder / "0.jpg", size)]
    for number in range(1, copies):
        files.append(folder / f"{number}.jpg")
        files[-1].symlink_to(files[0])
    flags = ["--model", str(model), "--closer-look", "64"]  # as the model in the package
    command = [sys.executable, "-P", "-c", SCAN, *map(str, files), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("1.000  1 region ") == copies, done.stderr
    return int(done.stderr.splitlines()[-1])


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> int:
    """Memory of the process and its network, which differs between processors."""
    return _peak(tmp_path_factory.mktemp("small"), SMALL)


@pytest.mark.parametrize(
    ("size", "copies", "limit"),
    [((8000, 6000), 1, ALONE), ((6000, 4000), 3, ONE_OF_MANY), ((12000, 9000), 1, ALONE)],
)
def test_a_large_photograph_takes_few_bytes_a_pixel(
    tmp_path: Path, process: int, size: tuple[int, int], copies: int, limit: int
) -> None:
    assert _peak(tmp_path, size, copies) - process < limit * size[0] * size[1]
