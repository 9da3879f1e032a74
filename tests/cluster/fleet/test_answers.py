"""Answers by idempotency key, and how many are kept."""

from __future__ import annotations

import asyncio

import pytest
from starlette.responses import Response

from prompt_iml.cluster.fleet.answers import REPEATED, Answers
from prompt_iml.cluster.fleet.limits import Refused


def ask(answers: Answers, key: str, digest: str = "d", status: int = 200, size: int = 1) -> bool:
    """Answer a request; return whether with an answer that was kept."""

    async def answer() -> Response:
        return Response(bytes(size), status)

    response = asyncio.run(answers.once(key, digest, answer))
    return REPEATED in response.headers


def test_answers_are_bounded_in_number_and_bytes() -> None:
    answers = Answers(most=2, most_bytes=10)
    assert [ask(answers, key) for key in "abca"] == [False] * 4
    assert ask(answers, "c")
    assert not ask(answers, "large", size=9)
    assert [ask(answers, key, size=1) for key in ("large", "c")] == [True, False]
    assert not ask(answers, "too large", size=11)
    assert not ask(answers, "too large", size=11)


@pytest.mark.parametrize(("status", "kept"), [(200, True), (422, True), (500, False)])
def test_failures_of_the_engine_are_tried_again(status: int, kept: bool) -> None:
    answers = Answers()
    assert not ask(answers, "key", status=status)
    assert ask(answers, "key", status=status) == kept


def test_another_request_is_refused() -> None:
    answers = Answers()
    ask(answers, "key")
    with pytest.raises(Refused, match="choose another key"):
        ask(answers, "key", "another")


def test_the_same_request_at_the_same_time_is_told_to_wait() -> None:
    answers = Answers()

    async def outer() -> Response:
        with pytest.raises(Refused, match="try again"):
            await answers.once("key", "d", outer)
        return Response(b"done")

    assert asyncio.run(answers.once("key", "d", outer)).body == b"done"
    assert ask(answers, "key")
