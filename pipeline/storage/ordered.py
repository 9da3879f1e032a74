"""Parallel map in threads, with ordered results and bounded look-ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

A = TypeVar("A")
R = TypeVar("R")


@contextmanager
def reading_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of threads that read; at the end nobody waits for those that still do, which
    may be minutes where a store does not answer."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def in_order(
    pool: ThreadPoolExecutor,
    work: Callable[[A], R],
    arguments: Iterable[A],
    ahead: int,
    ready: Callable[[int], None] = lambda count: None,
) -> Iterator[R]:
    """Yield `work` of each argument, in order, with at most `ahead` of them submitted.

    Unlike `pool.map`, it takes arguments only as results are consumed. Closing the generator
    cancels the calls that have not begun. While arguments are left, `ready` is called before each
    result with the number of results that are done.
    """
    pending: deque[Future[R]] = deque()
    try:
        for argument in arguments:
            pending.append(pool.submit(work, argument))
            if len(pending) >= ahead:
                ready(sum(future.done() for future in pending))
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
