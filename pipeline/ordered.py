"""Concurrency that keeps order and bounds what is held."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
R = TypeVar("R")


def in_order(
    pool: ThreadPoolExecutor,
    work: Callable[[A], R],
    arguments: Iterable[A],
    ahead: int,
    ready: Callable[[int], None] = lambda count: None,
) -> Iterator[R]:
    """`pool.map` with at most `ahead` results in flight; closing it cancels what has not begun.

    Before each result `ready` is told how many there are.
    """
    flying: deque[Future[R]] = deque()
    try:
        for argument in arguments:
            flying.append(pool.submit(work, argument))
            if len(flying) >= ahead:
                ready(sum(future.done() for future in flying))
                yield flying.popleft().result()
        while flying:
            yield flying.popleft().result()
    finally:
        for future in flying:
            future.cancel()
