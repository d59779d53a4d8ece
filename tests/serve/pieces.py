"""What a reader of tool calls finds, put together, and the ways to cut a text into pieces."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import strategies as st

from serve.api.calls import Arguments, Called, Content, Piece

CUTS = st.lists(st.integers(min_value=0, max_value=10_000), max_size=12)


def gathered(pieces: list[Piece]) -> tuple[str, list[list[str]]]:
    """The content, and each call's name and arguments; calls come in order, and arguments after their call."""
    content, calls = "", []
    for piece in pieces:
        if isinstance(piece, Content):
            content += piece.text
        elif isinstance(piece, Called):
            assert piece.index == len(calls)
            calls.append([piece.name, ""])
        else:
            assert isinstance(piece, Arguments)
            assert piece.index == len(calls) - 1
            calls[-1][1] += piece.text
    return content, calls


def cut(text: str, at: list[int]) -> list[str]:
    """A text in pieces, cut at these places (taken modulo its length)."""
    bounds = sorted({0, len(text), *(where % (len(text) + 1) for where in at)})
    return [text[a:b] for a, b in pairwise(bounds)]
