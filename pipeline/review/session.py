"""A reviewer's session: the queue, what is decided about each picture, and saving decisions."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from threading import Lock

from prompt_iml.engine.errors import NotFound
from prompt_iml.pipeline.images.decode import DecodeLimits
from prompt_iml.pipeline.logs import printable
from prompt_iml.pipeline.report.page import Picture, folder, name
from prompt_iml.pipeline.report.reasons import Row, reasons_of, sentences
from prompt_iml.pipeline.review.pictures import (
    drawn_mask,
    heat_png,
    mask_png,
    picture_jpeg,
    sheet_size,
    stored_mask,
)
from prompt_iml.pipeline.review.queue import Shown
from prompt_iml.pipeline.review.sources import Sources
from prompt_iml.pipeline.run.folder import Json, Run
from prompt_iml.pipeline.truth.masks import Rle, load_mask
from prompt_iml.pipeline.truth.reviews import (
    FOLDER,
    Decision,
    Review,
    current,
    read_reviews,
    verdicts,
    write_review,
)

PNG_URL = "data:image/png;base64,"


@dataclass(frozen=True, slots=True)
class Subject:
    """Run, reviewer and queue of a session.

    Attributes:
        run: run whose findings are reviewed.
        config: its configuration.
        reviewer: name of the person who decides.
        queue: pictures to show, in order.
    """

    run: Run
    config: Json
    reviewer: str
    queue: Sequence[Shown]


class Session:
    """State behind the page, for several threads.

    Attributes:
        decided: ids of the pictures that were decided in this session.

    Args:
        subject: what is reviewed.
        sources: reader of the queue's pictures.
    """

    def __init__(self, subject: Subject, sources: Sources) -> None:
        self._subject, self._sources = subject, sources
        self._shown = {shown.row["image_id"]: shown for shown in subject.queue}
        policy = subject.config.get("policy", {})
        rows = [shown.row for shown in subject.queue]
        said = zip(rows, reasons_of(rows, policy), strict=True)
        self._reasons = {row["image_id"]: sentences(names, row, policy) for row, names in said}
        self._limits = DecodeLimits(max_pixels=subject.config["max_pixels"])
        self._files: dict[str, list[Review]] = {}
        self._lock = Lock()
        self._last = datetime.min.replace(tzinfo=UTC)  # decision, whatever the clock says later
        self.decided: set[str] = set()
        self.refresh()

    @property
    def folder(self) -> str:
        """URI of the folder with the reviews."""
        return f"{self._subject.run.output}/{FOLDER}"

    def refresh(self) -> None:
        """Read what others have decided since. Raises `BadLabels` or `FetchError`."""
        with self._lock:
            new = read_reviews(self.folder, self._files)
            self._files |= new
            own = [each for file in new.values() for each in file if self._is_own(each)]
            self._last = max([self._last, *(each.decided_at for each in own)])

    def document(self) -> Json:
        """Return the queue with all facts of its pictures, and what is decided."""
        held = self._held()
        return {
            "reviewer": self._subject.reviewer,
            "run": self._subject.run.run_id,
            "pictures": [self._facts(each) | self._state(each, held) for each in self._shown],
        }

    def picture(self, image_id: str) -> bytes:
        """Return the JPEG of a picture. Raises `ImageError`."""
        row = self._row(image_id)
        return picture_jpeg(self._sources.read(row), row, self._limits)

    def mask(self, image_id: str) -> bytes:
        """Return the sheet of the reviewer's own mask, or else of the one that the scan found."""
        row, own = self._row(image_id), self._own(image_id, self._held())
        mask = load_mask(own.mask) if own and own.mask else stored_mask(row)
        if mask is None:
            raise NotFound("there is no mask")
        return mask_png(mask, row)

    def heat(self, image_id: str) -> bytes:
        """Return the sheet of probabilities. Raises `ImageError` where none are stored."""
        row = self._row(image_id)
        if row["heatmap_png"] is None:
            raise NotFound("there is no heat map: scan with --heatmap")
        return heat_png(row)

    def decide(self, image_id: str, decision: Decision, drawn: str | None, note: str) -> Json:
        """Save a decision; return the state of its picture. When this returns, it is stored.

        Args:
            drawn: mask of `manipulated`, a sheet as the data: URL of a PNG; None: the one that
                the page was given.

        Raises:
            ImageError: there is no such picture.
            ValueError: there is no mask, or it is wrong.
            UsageError: the decision cannot be written.
        """
        shown = self._of(image_id)
        mask = self._mask(image_id, drawn) if decision == "manipulated" else None
        with self._lock:
            self._last = max(datetime.now(UTC), self._last + timedelta(microseconds=1))
            review = self._review(shown, decision, mask, note, self._last)
            self._files[write_review(self.folder, review)] = [review]
            self.decided.add(image_id)
            if decision == "withdrawn":
                self.decided.discard(image_id)
        return self._state(image_id, self._held())

    def _is_own(self, review: Review) -> bool:
        return review.reviewer == self._subject.reviewer

    def _mask(self, image_id: str, drawn: str | None) -> Rle:
        row, own = self._row(image_id), self._own(image_id, self._held())
        if drawn is not None:
            return Rle.of(drawn_mask(_png(drawn), row))
        if own and own.mask:
            return own.mask
        if row["mask_rle"] is None:
            raise ValueError("there is no mask: draw one, or choose that the mask is wrong")
        return Rle(row["mask_rle"], row["mask_height"], row["mask_width"])

    def _review(
        self, shown: Shown, decision: Decision, mask: Rle | None, note: str, at: datetime
    ) -> Review:
        row, subject = shown.row, self._subject
        return Review(
            **{name: row[name] for name in ("image_id", "uri", "member", "sha256", "model")},
            decision=decision,
            mask=mask,
            note=note,
            reviewer=subject.reviewer,
            decided_at=at,
            run_id=subject.run.run_id,
            scan_label=row["label"],
            scan_score=row["score"],
            shown_for=shown.shown_for,
        )

    def _of(self, image_id: str) -> Shown:
        if image_id not in self._shown:
            raise NotFound("this picture is not in the queue")
        return self._shown[image_id]

    def _row(self, image_id: str) -> Row:
        return self._of(image_id).row

    def _held(self) -> dict[str, list[Review]]:
        with self._lock:
            return current(review for file in self._files.values() for review in file)

    def _own(self, image_id: str, held: dict[str, list[Review]]) -> Review | None:
        """Return the reviewer's own decision on the bytes that the scan saw."""
        sha256 = self._row(image_id)["sha256"]
        found = filter(self._is_own, held.get(image_id, []))
        return next((each for each in found if each.sha256 == sha256), None)

    def _facts(self, image_id: str) -> Json:
        """Return what the scan found of a picture."""
        shown = self._of(image_id)
        row = shown.row
        facts = Picture(row, None, None, False, ()).details()
        return {
            "id": image_id,
            "name": printable(name(row), ""),
            "folder": printable(folder(row), ""),
            "label": row["label"],
            "score": row["score"],
            "reasons": self._reasons[image_id],
            "shown_for": shown.shown_for,
            "sheet": sheet_size(row),
            "has_mask": row["mask_rle"] is not None,
            "threshold": row["mask_threshold"],
            "has_heat": row["heatmap_png"] is not None,
            "facts": {key: printable(str(value), "") for key, value in facts.items()},
        }

    def _state(self, image_id: str, held: dict[str, list[Review]]) -> Json:
        """Return what is decided about a picture."""
        own, reviews = self._own(image_id, held), held.get(image_id, [])
        disagree = len(verdicts(reviews)) > 1
        return {
            "decision": own.decision if own else "",
            "note": own.note if own else "",
            "has_own_mask": bool(own and own.mask),
            "said": [[each.reviewer, each.decision] for each in reviews] if disagree else [],
        }


def _png(url: str) -> bytes:
    if not url.startswith(PNG_URL):
        raise ValueError("the mask is not the data: URL of a PNG")
    try:
        return base64.b64decode(url.removeprefix(PNG_URL), validate=True)
    except binascii.Error as error:
        raise ValueError(f"the mask is not base64: {error}") from error
