"""Answers by idempotency key, and how many are kept."""

from __future__ import annotations

import asyncio

import pytest
from starlette.responses import Response

from prompt_iml.cluster.fleet.answers import REPEATED, Answered, Answers
from prompt_iml.cluster.fleet.limits import Refused


def ask(answers: Answers, key: str, digest: str = "d", lasting: bool = True, size: int = 1) -> bool:
    """Answer a request; return whether with an answer that was kept."""

    async def answer() -> Answered:
        return Answered(Response(bytes(size)), lasting)

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


@pytest.mark.parametrize("lasting", [True, False])
def test_only_answers_that_last_are_kept(lasting: bool) -> None:
    answers = Answers()
    assert not ask(answers, "key", lasting=lasting)
    assert ask(answers, "key", lasting=lasting) == lasting


def test_another_request_is_refused() -> None:
    answers = Answers()
    ask(answers, "key")
    with pytest.raises(Refused, match="choose another key"):
        ask(answers, "key", "another")


def test_the_same_request_at_the_same_time_is_told_to_wait() -> None:
    answers = Answers()

    async def outer() -> Answered:
        with pytest.raises(Refused, match="try again"):
            await answers.once("key", "d", outer)
        return Answered(Response(b"done"), True)

    assert asyncio.run(answers.once("key", "d", outer)).body == b"done"
    assert ask(answers, "key")
