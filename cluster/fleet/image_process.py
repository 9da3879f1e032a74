"""Process of a replica that scans one image after another, and may die of one.

    replica --------- spec; then `row` or `overlay`, and the bytes of an image ---------> child
            <- ready PROVENANCE, or failed REASON; then decode, infer, done ROW OVERLAY -

A decoder that crashes, hangs or takes all memory ends the child alone. Its image gets a failed row
(`crashed`, `timeout`, `out_of_memory`), and another child, with an engine of its own, is begun at
once. `pipeline.scan.isolated` does the same for a unit of a scan, once it has killed an actor.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from multiprocessing import Pipe
from multiprocessing.connection import Connection

from PIL import Image as PilImage

from prompt_iml.engine.errors import Crashed, Fatal, OutOfMemory, PromptImlError, TimedOut
from prompt_iml.pipeline.detect.detector import finding
from prompt_iml.pipeline.detect.pictures import Result
from prompt_iml.pipeline.scan.isolated import (
    KILLS,
    START_SECONDS,
    Line,
    cause_of,
    die_with_parent,
    limit_memory,
    memory_of,
    row_of,
)
from prompt_iml.pipeline.scan.rows import Row, failure, identity
from prompt_iml.pipeline.scan.scanner import RowMaker, RowSpec
from prompt_iml.pipeline.units import Sample

OVERLAY = "overlay_png"  # name beside the columns of a row
OVERLAY_SIDE = 2048  # most pixels of its longer side


class ImageProcess:
    """Maker of the rows of one image after another, in a child process.

    Its calls come from one thread, which lives as long as it: the child dies with that thread.

    Args:
        spec: how it makes rows.

    Attributes:
        provenance: columns that `row` leaves out: what made them.

    Raises:
        Fatal: a child cannot load the engine.
    """

    def __init__(self, spec: RowSpec) -> None:
        self._spec = spec
        self._child = _Child(spec)
        self.provenance = self._loaded()

    def row(self, body: bytes, overlay: bool = False) -> Row:
        """Return the row of an image; a failed one if it ends the child.

        Args:
            body: bytes of the image.
            overlay: whether the row also gets the image with its mask drawn over it, as PNG.
        """
        if self._child.has_ended():  # by no fault of this image
            self._begin_again()
        try:
            self._loaded()
            return self._child.row(body, overlay)
        except Fatal as death:
            self._begin_again()
            return identity(Sample("", data=body)) | failure(death)

    def _loaded(self) -> Row:
        """Wait until a child has loaded the engine; return its provenance, or raise `Fatal`."""
        for _ in range(KILLS - 1):
            try:
                return self._child.provenance()
            except OutOfMemory:  # loading takes the most: the system may have room a moment later
                self._begin_again()
        return self._child.provenance()

    def close(self) -> None:
        """End the child."""
        self._child.stop()

    def _begin_again(self) -> None:
        self.close()
        self._child = _Child(self._spec)


class _Child:
    """One child process, which loads its engine while others work."""

    def __init__(self, spec: RowSpec) -> None:
        self._seconds = spec.image_timeout
        self._provenance: Row | None = None
        self._line, theirs = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        theirs.close()
        self._send(spec.to_json().encode())

    def provenance(self) -> Row:
        """Wait until the engine is loaded; return the columns that name model and engine."""
        while self._provenance is None:
            word, _, text = self._receive(START_SECONDS, "infer").decode().partition(" ")
            if word == "failed":
                self.stop()
                raise Crashed(text, "infer")
            if word == "ready":
                self._provenance = json.loads(text)
        return self._provenance

    def row(self, body: bytes, overlay: bool) -> Row:
        """Return the row of an image; raise `Fatal` if the process ends or is stuck."""
        self._send(b"overlay" if overlay else b"row")
        self._send(body)
        stage = "decode"
        while (word := self._receive(self._seconds, stage).decode()) != "done":
            stage = word
        row = row_of(self._receive(self._seconds, stage))
        drawn = self._receive(self._seconds, stage)
        return row | {OVERLAY: drawn} if drawn else row

    def has_ended(self) -> bool:
        """Return whether the process has ended."""
        return self._process.poll() is not None

    def stop(self) -> None:
        """Kill the process, if it has not ended."""
        self._process.kill()
        self._process.wait()
        self._line.close()

    def _send(self, message: bytes) -> None:
        try:
            self._line.send_bytes(message)
        except OSError:  # the process has died: `_receive` finds the cause
            return

    def _receive(self, seconds: float, stage: str) -> bytes:
        try:
            if self._line.poll(seconds):
                return self._line.recv_bytes()
            raise TimedOut(f"not done after {seconds:g} s", stage)
        except (EOFError, OSError):
            death = cause_of(self._process.wait())
            death.stage = stage
            raise death from None


def blank_png() -> bytes:
    """Return an image of the commonest shape of tiles."""
    sink = io.BytesIO()
    PilImage.new("RGB", (512, 512)).save(sink, "PNG")
    return sink.getvalue()


def overlay_png(row: Row, sample: Sample, spec: RowSpec) -> bytes:
    """Return the overlay of a scanned image as PNG."""
    sink = io.BytesIO()
    finding(Result(sample, row, None), spec).overlay(OVERLAY_SIDE).save(sink, "PNG")
    return sink.getvalue()


def _started(spec: RowSpec, line: Line) -> RowMaker:
    """Load the engine, and compile it for one shape of tiles; raises `PromptImlError`."""
    maker = RowMaker(spec, line)
    (row,) = maker.rows([Sample("", data=blank_png())])
    if row["status"] != "ok":
        raise PromptImlError(row["error_message"])
    limit_memory(memory_of(spec))
    return maker


def main() -> None:
    """Run the child process; its argument is the file descriptor of the pipe."""
    die_with_parent()
    connection = Connection(int(sys.argv[1]))
    line = Line(connection)
    try:
        maker = _started(RowSpec.from_json(connection.recv_bytes().decode()), line)
    except PromptImlError as error:
        line.send(f"failed {error}")
        return
    line.send(f"ready {json.dumps(maker.provenance)}")
    while True:
        try:
            wanted, body = connection.recv_bytes(), connection.recv_bytes()
        except EOFError:  # the replica has ended
            return
        _answer(maker, line, Sample("", data=body), wanted == b"overlay")


def _answer(maker: RowMaker, line: Line, sample: Sample, overlay: bool) -> None:
    (row,) = maker.rows([sample])
    drawn = b""
    if overlay and row["status"] == "ok":
        with line.working("decode"):
            drawn = overlay_png(row, sample, maker.spec)
    line.send("done", row)
    line.send_bytes(drawn)


if __name__ == "__main__":
    main()
