"""Tokens that are parts of characters: their bytes, their places, and how they look."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from serve.api.logprobs import Offset, chat_logprobs, text_logprobs
from serve.engine.request import TokenLogprob

BIRD = "é🐦".encode()


def of(token: int) -> bytes:
    return BIRD[token : token + 1]


def test_a_chat_shows_the_bytes_of_every_token() -> None:
    entries = [TokenLogprob(token, -1.0, ((token, -1.0), (0, -2.0))) for token in range(len(BIRD))]
    content = chat_logprobs(entries, of)["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in content) == BIRD
    assert {entry["token"] for entry in content} == {"\ufffd"}
    assert content[2]["top_logprobs"][1] == {"token": "\ufffd", "logprob": -2.0, "bytes": [BIRD[0]]}


def test_a_completion_tells_parts_of_characters_apart() -> None:
    entries = [TokenLogprob(0, -1.0, ((0, -1.0), (1, -2.0), (2, -3.0)))]
    said = text_logprobs(entries, of, Offset())
    assert said["tokens"] == ["bytes:\\xc3"]
    assert said["top_logprobs"] == [{"bytes:\\xc3": -1.0, "bytes:\\xa9": -2.0, "bytes:\\xf0": -3.0}]


@given(st.text(), st.lists(st.integers(0, 200)))
def test_an_offset_is_where_a_token_begins_in_the_text(text: str, cuts: list[int]) -> None:
    raw = text.encode()
    bounds = sorted({0, len(raw), *(at % (len(raw) + 1) for at in cuts)})
    offset = Offset()
    for begin, end in pairwise(bounds):
        assert offset.pass_over(raw[begin:end]) == len(raw[:begin].decode(errors="ignore"))
