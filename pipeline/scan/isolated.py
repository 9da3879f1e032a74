"""Scan of a unit, image by image, in a child process, to find an image that kills it.

    actor ------ spec, unit, how many images are done -----> child
          <- ready, fetch, begin ROW (go), decode, infer, done ROW, end -

A unit during which an actor died is scanned by a child of the next actor. When children repeatedly
die or time out at the same image, it gets a failed row (`crashed`, `timeout`, `out_of_memory`), and
the next child continues after it. So does an object that cannot be read in time; a shard, or what
is left of the unit after two such objects in a row, cannot be read further. Where memory runs out
the system may kill the actor with its child, or the whole container, so deaths are also counted
outside, by `Begun`. Rows travel as Arrow: data from a process that read a hostile image is never
unpickled.
"""

from __future__ import annotations

import ctypes
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import pyarrow as pa

from prompt_iml.engine.errors import Crashed, Fatal, OutOfMemory, PromptImlError, TimedOut
from prompt_iml.pipeline.run.schema import to_batch
from prompt_iml.pipeline.scan.rows import Row, failure, identity
from prompt_iml.pipeline.scan.scanner import RowMaker, RowSpec
from prompt_iml.pipeline.scan.watchdog import Stage
from prompt_iml.pipeline.units import Sample, Unit, unit_from_json, unit_to_json

BYTES_PER_PIXEL = 20  # decoding takes 10 at its peak
SPARE_BYTES = 3 << 30  # an engine for tiles of every shape reserves half of it
DEATHS = 2  # at one image, by a fault of the process or by a time-out
KILLS = 4  # by the system, or between two images: a node that shuts down kills, too
START_SECONDS = 600  # to load the engine
PR_SET_PDEATHSIG = 1

# Records that an image (True) or the reading before it (False) begins, by the number of images that
# are done, and returns how many processes ended there before.
Begun = Callable[[int, bool], int]
TOGETHER = "the actor died with it each time, as where the memory of a container runs out"


def isolated_rows(
    spec: RowSpec, unit: Unit, begun: Begun = lambda done, is_image: 0
) -> Iterator[Row]:
    """Yield one row for every image of the unit, even if an image kills the process.

    Args:
        begun: counts what an actor's own death would make it forget.

    Raises:
        PromptImlError: a child cannot load the engine.
    """
    done = deaths = 0
    is_stuck = False  # whether reading took too long, and no row was made since
    left: dict[str | None, None] = dict.fromkeys(unit.members)
    while True:
        child = Child(spec, unit, done)
        try:
            for row in child.rows(begun):
                done, deaths, is_stuck = done + 1, 0, False
                left.pop(row.get("member"), None)
                yield row
        finally:
            child.stop()
        if child.death is None:
            return
        deaths += 1
        if deaths < _deaths_allowed(child):
            continue
        if not child.ready:
            raise PromptImlError(f"a child process cannot scan: {child.death}")
        at = child.at or (None if is_stuck or child.refused else _stuck_at(unit, done, child.death))
        if at is None:
            yield from _unread(unit, done, left, child.death)
            return
        left.pop(at.get("member"), None)
        yield at | failure(child.death)
        done, deaths, is_stuck = done + 1, 0, child.at is None


def _deaths_allowed(child: Child) -> int:
    """Return the consecutive deaths after which the image, or its source, gets a failed row."""
    if child.refused:
        return 1
    is_kill = isinstance(child.death, OutOfMemory)
    if not child.ready and not is_kill:
        return 1
    if child.at is None and isinstance(child.death, TimedOut):
        return 1  # the actor, or a child before, waited as long
    return KILLS if is_kill or child.at is None else DEATHS


def _stuck_at(unit: Unit, done: int, death: Fatal) -> Row | None:
    """Return the known columns of the object that cannot be read in time; None for a shard."""
    if done >= len(unit.objects) or not isinstance(death, TimedOut):
        return None
    ref = unit.objects[done]
    return identity(Sample(ref.uri, content_id=ref.content_id))


def _unread(unit: Unit, done: int, left: Iterable[str | None], death: Fatal) -> Iterator[Row]:
    """Yield failed rows of images without one, if reading kills; `left` are their members."""
    samples = [Sample(ref.uri, content_id=ref.content_id) for ref in unit.objects[done:]]
    samples += [Sample(unit.uri, name) for name in left]
    # A range of a Parquet file is named as `read_parquet` names what it cannot read.
    first = str(unit.first_row + done) if unit.kind == "parquet" and unit.first_row + done else None
    for sample in samples or [Sample(unit.uri, first)]:
        yield identity(sample) | failure(death)


class Child:
    """Child process that scans a unit from image number `done` on.

    Attributes:
        death: cause of its end before the end of the unit; None if it reached the end.
        at: known columns of the row of the current image; None between images.
        ready: whether it has loaded the engine.
        refused: whether the current image may not begin, or reading may not go on.
    """

    def __init__(self, spec: RowSpec, unit: Unit, done: int) -> None:
        self.death: Fatal | None = None
        self.at: Row | None = None
        self.ready = self.refused = False
        self._spec, self._done = spec, done
        self._line, theirs = Pipe()
        self._process = subprocess.Popen(
            # -P: nothing is imported from the working folder, which may be the one that is scanned.
            [sys.executable, "-P", "-m", "prompt_iml.pipeline.scan.isolated", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        theirs.close()
        if unit.objects:  # those before are not fetched again
            unit, done = replace(unit, objects=unit.objects[done:]), 0
        job = {"spec": spec.to_json(), "unit": unit_to_json(unit), "done": done}
        with suppress(OSError):  # the process has died: `rows` finds the cause
            self._line.send_bytes(json.dumps(job).encode())

    def rows(self, begun: Begun) -> Iterator[Row]:
        """Yield rows as they are done, until the end of the unit or of the process, or until too
        many processes ended where this one is."""
        stage = "start"
        try:
            while (word := self._word(stage)) != "end":
                stage, self.ready = word, True
                if word == "ready":
                    self._begin(begun, is_image=False)
                elif word == "begin":
                    self.at, stage = row_of(self._receive()), "decode"
                    self._begin(begun, is_image=True)
                    with suppress(OSError):  # it has died: the next word says so
                        self._line.send_bytes(b"go")
                elif word == "done":
                    self.at = None
                    self._done += 1
                    yield row_of(self._receive())
                    self._begin(begun, is_image=False)
        except Fatal as death:
            death.stage = stage if self.at else "fetch"
            self.death = death

    def _begin(self, begun: Begun, *, is_image: bool) -> None:
        if begun(self._done, is_image) >= KILLS:
            self.refused = True
            raise OutOfMemory(TOGETHER)

    def stop(self) -> None:
        """Kill the process, if it has not ended."""
        self._process.kill()
        self._process.wait()
        self._line.close()

    def _word(self, stage: str) -> str:
        """Return the child's next message; raise `Fatal` if it ends or times out."""
        seconds, what = self._spec.image_timeout, "not done"
        if self.at is None:
            seconds, what = self._spec.read_timeout, "reading the next image was not done"
        if stage == "start":
            seconds, what = START_SECONDS, "the engine was not loaded"
        if not self._line.poll(seconds):
            raise TimedOut(f"{what} after {seconds:g} s")
        return self._receive().decode()

    def _receive(self) -> bytes:
        try:
            return self._line.recv_bytes()
        except (EOFError, OSError):
            raise cause_of(self._process.wait()) from None


def cause_of(exit_status: int) -> Fatal:
    """Return the cause of a process's end, from the exit status of `Popen.wait`."""
    if exit_status == -signal.SIGKILL:
        return OutOfMemory("the system killed the process, as it does when memory runs out")
    if exit_status < 0:
        return Crashed(f"the process died of {signal.Signals(-exit_status).name}")
    return Crashed(f"the process ended with exit status {exit_status}")


def row_of(message: bytes) -> Row:
    """Parse a row that `Line.send` sent."""
    row: Row = pa.ipc.open_stream(message).read_next_batch().to_pylist()[0]
    return {name: value for name, value in row.items() if value is not None}


class Line:
    """Pipe of the child to its parent: announces each step before it begins."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def send(self, word: str, row: Row | None = None) -> None:
        self._connection.send_bytes(word.encode())
        if row is not None:
            batch = to_batch([{"status": "failed"} | row])
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, batch.schema) as writer:
                writer.write_batch(batch)
            self._connection.send_bytes(sink.getvalue())

    def send_bytes(self, message: bytes) -> None:
        """Send what belongs to the word and the row before it."""
        self._connection.send_bytes(message)

    @contextmanager
    def working(self, stage: Stage) -> Iterator[None]:
        """Announce a stage; see `Watch`."""
        self.send(stage)
        yield


def die_with_parent() -> None:
    """Have the system kill this process when the thread that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def memory_of(spec: RowSpec) -> int:
    """Return the bytes that a process may take beside its engine."""
    return spec.memory or BYTES_PER_PIXEL * spec.max_pixels + SPARE_BYTES


def limit_memory(more_bytes: int) -> None:
    """Limit this process's memory to what it has and so many bytes more; on Linux only.

    What needs more then fails, and not the machine.
    """
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[5])  # of data
        limit = pages * resource.getpagesize() + more_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def main() -> None:
    """Run the child process; its argument is the file descriptor of the pipe."""
    die_with_parent()
    connection = Connection(int(sys.argv[1]))
    job = json.loads(connection.recv_bytes())
    spec, unit = RowSpec.from_json(job["spec"]), unit_from_json(job["unit"])
    line = Line(connection)
    maker = RowMaker(spec, line)
    limit_memory(memory_of(spec))
    line.send("ready")
    for sample in islice(maker.samples(unit), job["done"], None):
        line.send("begin", identity(sample))
        connection.recv_bytes()
        for row in maker.rows([sample]):
            line.send("done", row)
    line.send("end")


if __name__ == "__main__":
    main()
