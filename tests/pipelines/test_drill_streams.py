"""The drill's questions are the same every time, and it sees any difference between two runs."""

from dataclasses import replace

import pytest

from pipelines.drill_streams import Heard, difference, questions

WANT = Heard([1, 2, 3], "abc", [-0.1, -0.2, -0.3], "length", [0.0, 0.5, 2.0])


def test_questions_are_reproducible_and_mixed() -> None:
    asked = questions(["p", "q"], model="m", count=10, tokens=9, seed=4)
    assert asked == questions(["p", "q"], model="m", count=10, tokens=9, seed=4)
    assert len({question.kind for question in asked}) == 5
    assert len({question.body.get("seed") for question in asked if question.kind != "greedy"}) == 8
    assert sum(question.body.get("n", 1) for question in asked) == 12


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ""),
        ({"times": []}, ""),
        ({"tokens": [1, 9, 3]}, "token 1 differs"),
        ({"tokens": [1, 2]}, "the beginning of the other"),
        ({"tokens": [1, 2, 3, 3]}, "4 tokens for 3"),
        ({"text": "abb"}, "the text differs"),
        ({"finish_reason": "stop"}, "ended by stop, not length"),
        ({"logprobs": [-0.1, -0.2, -0.4]}, "log probabilities differ"),
        ({"logprobs": []}, "log probabilities differ"),
    ],
)
def test_differences_are_seen(change: dict, words: str) -> None:
    found = difference(WANT, replace(WANT, **change))
    assert words in found
    assert bool(words) == bool(found)


def test_the_longest_silence() -> None:
    assert WANT.longest_silence_s == 1.5
    assert Heard().longest_silence_s == 0.0
