"""Reads that are tried again: what passes is waited for, what does not is told at once."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from prompt_iml.engine.errors import FetchError, FetchTimeout

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a call is tried.

    Attributes:
        attempts: calls at the most.
        first_wait, longest_wait: seconds; a wait is drawn from 0 to `first_wait`, doubled with
            every attempt up to `longest_wait` ("full jitter": a thousand readers that were
            refused together do not come back together).
        budget: seconds after which no further attempt begins.
    """

    attempts: int = 8
    first_wait: float = 0.4
    longest_wait: float = 20.0
    budget: float = 180.0


def patiently(call: Callable[[], R], patience: Patience) -> R:
    """The call's result, after as many attempts as it takes.

    Raises:
        FetchError: the last attempt's; at the first attempt what waiting does not mend
            (`NotFound`, `Denied`, `DamagedShard`).
    """
    deadline = time.monotonic() + patience.budget
    for attempt in range(patience.attempts):
        try:
            return call()
        except FetchError as error:
            wait = random.uniform(0, min(patience.first_wait * 2**attempt, patience.longest_wait))
            is_last = attempt == patience.attempts - 1 or time.monotonic() + wait > deadline
            if is_last or type(error) not in (FetchError, FetchTimeout):
                raise
        time.sleep(wait)
    raise AssertionError("no attempt was made")
