"""Retries of reads from a store, for errors that may pass."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from prompt_iml.engine.errors import FetchError, FetchTimeout

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Limits of the attempts at one call.

    Attributes:
        attempts: maximum number of calls.
        first_wait, longest_wait: seconds; a wait is uniformly random from 0 to `first_wait`, which
            doubles with every attempt up to `longest_wait` ("full jitter": readers that were
            refused together do not come back together).
        budget: seconds after which no further attempt begins.
    """

    attempts: int = 8
    first_wait: float = 0.4
    longest_wait: float = 20.0
    budget: float = 180.0


def retry(call: Callable[[], R], policy: RetryPolicy) -> R:
    """Call until it succeeds, and return its result.

    Raises:
        FetchError: the error of the last attempt. Errors that do not pass (`NotFound`, `Denied`,
            `BadAnswer`, `DamagedShard`) are raised at once.
    """
    deadline = time.monotonic() + policy.budget
    for attempt in range(policy.attempts):
        try:
            return call()
        except FetchError as error:
            wait = random.uniform(0, min(policy.first_wait * 2**attempt, policy.longest_wait))
            is_last = attempt == policy.attempts - 1 or time.monotonic() + wait > deadline
            if is_last or type(error) not in (FetchError, FetchTimeout):
                raise
        time.sleep(wait)
    raise AssertionError("no attempt was made")
