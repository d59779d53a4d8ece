"""Every measure against the plain version of what its comment says."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.curate.measure import measure_code, measure_prose
from pipelines.curate.normalize import clean
from pipelines.curate.quality import judge

PIECES = [
    "the",
    "and",
    "of",
    "tern.",
    "a1",
    "...",
    "#",
    "- item",
    "日本。",
    "É!",
    '"so."',
    "{x}",
    "42",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\n \n",
    "the and of the and of x ",
    "Use cookies",
    "JavaScript.",
    "and so on.",
    "(and so.)",
    "है।",
    "日本。」",
    "'tis!'",
    "x" * 1001,
]
TEXTS = st.lists(st.lists(st.sampled_from(PIECES), max_size=40).map(lambda parts: clean(" ".join(parts))), min_size=1, max_size=4)


def spans_of(text):
    return [(m.start(), m.end()) for m in re.finditer(r"\S+", text)]


def top(text, n):
    spans = spans_of(text)
    words = [text[a:b] for a, b in spans]
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    counts = Counter(grams)
    most = max((c for c in counts.values() if c > 1), default=0)
    first = [grams.index(g) for g, c in counts.items() if c == most and most]
    return max((most * (spans[i + n - 1][1] - spans[i][0]) for i in first), default=0) / max(len(text), 1)


def covered(text, n):
    spans = spans_of(text)
    words = [text[a:b] for a, b in spans]
    inside, seen = set(), set()
    for i in range(len(words) - n + 1):
        gram = tuple(words[i : i + n])
        if gram in seen:
            inside.update(range(i, i + n))
        seen.add(gram)
    return sum(len(words[i]) for i in inside) / max(len(text), 1)


def duplicate(items, chars):
    again = [item for place, item in enumerate(items) if item in items[:place]]
    return sum(map(len, again)) / max(chars, 1) if chars else len(again) / max(len(items), 1)


def plain_sentences(lines):
    """C4's: of lines of three words, none too long (or of Chinese or Japanese sentences), without boilerplate."""
    ends, phrases = (
        re.compile(r"[.!?…।][\"')\]}”’»]?$"),
        ("javascript", "terms of use", "privacy policy", "cookie policy", "use cookies", "uses cookies"),
    )
    found = {"sentences": 0, "terminated_sentences": 0}
    for line in lines:
        words, wide = line.split(), sum(line.count(c) for c in "。！？｡")
        if (not wide and (len(words) < 3 or max(map(len, words)) > 1000)) or any(p in line.lower() for p in phrases):
            continue
        number = wide + sum(bool(ends.search(w)) and not n[0].islower() for w, n in itertools.pairwise(words))
        number += bool(ends.search(words[-1])) or line[-1] not in "。！？｡"
        found["sentences"] += number
        found["terminated_sentences"] += number * (line[-1] in ".!?\"'" and not line.endswith("..."))
    return found


def plain_prose(text):
    words = text.split()
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    paragraphs = [p.strip() for p in re.split(r"\n(?:[^\S\n]*\n)+", text) if p.strip()]
    paragraphs = ["\n".join(p.split("\n")) for p in paragraphs]
    per_word, per_line = max(len(words), 1), max(len(lines), 1)
    return {
        "num_words": len(words),
        "mean_word_chars": sum(map(len, words)) / per_word,
        "hashes_per_word": text.count("#") / per_word,
        "ellipses_per_word": (text.count("...") + text.count("…")) / per_word,
        "letter_words": sum(any(c.isalpha() for c in w) for w in words) / per_word,
        "stop_words": len({"the", "be", "to", "of", "and", "that", "have", "with"} & set(words)),
        "newlines_per_token": text.count("\n") / max(len(re.findall(r"[^\W_]+|[^\w\s]|_", text)), 1),
        **plain_sentences(lines),
        "lorem_ipsum": float("lorem ipsum" in text.lower()),
        "curly_brackets": text.count("{"),
        "bullet_lines": sum(line[0] in "-•" for line in lines) / per_line,
        "ellipsis_lines": sum(line.endswith(("...", "…")) for line in lines) / per_line,
        "punctuated_lines": sum(bool(re.search(r"[.!?…।。！？｡][\"')\]}”’»]?$", line)) for line in lines) / per_line,
        "short_lines": sum(len(line) <= 30 for line in text.split("\n") if line.strip()) / per_line,
        "duplicate_lines": duplicate(lines, 0),
        "duplicate_line_chars": duplicate(lines, len(text)) if lines else 0.0,
        "duplicate_paragraphs": duplicate(paragraphs, 0),
        "duplicate_paragraph_chars": duplicate(paragraphs, len(text)) if lines else 0.0,
        **{f"top_{n}gram_chars": top(text, n) for n in (2, 3, 4)},
        **{f"duplicate_{n}gram_chars": covered(text, n) for n in range(5, 11)},
    }


def plain_code(text):
    lines, chars = text.split("\n"), max(len(text), 1)
    trimmed = [line.strip() for line in lines if line.strip()]
    return {
        "num_words": len(text.split()),
        "num_chars": chars,
        "longest_line": max(map(len, lines)),
        "mean_line": sum(map(len, lines)) / len(lines),
        "letters": sum(c.isalpha() for c in text) / chars,
        "digits": sum(c.isdigit() for c in text) / chars,
        "duplicate_line_chars": duplicate(trimmed, len(text)) if trimmed else 0.0,
        "generated": 0.0,
    }


@settings(deadline=None)
@given(TEXTS)
def test_prose_measures_agree_with_the_plain_version(texts):
    measured = measure_prose(texts)
    for place, text in enumerate(texts):
        assert {name: values[place] for name, values in measured.items()} == pytest.approx(plain_prose(text)), text


@settings(deadline=None)
@given(TEXTS)
def test_code_measures_agree_with_the_plain_version(texts):
    measured = measure_code(texts)
    for place, text in enumerate(texts):
        assert {name: values[place] for name, values in measured.items()} == pytest.approx(plain_code(text)), text


@settings(deadline=None)
@given(TEXTS, st.sampled_from(["web", "code"]))
def test_a_verdict_does_not_depend_on_the_company(texts, profile):
    together = judge(texts, profile)
    assert together == tuple(list(column) for column in zip(*[(r[0], w[0]) for r, w in (judge([t], profile) for t in texts)], strict=True))


def test_no_line_of_a_text_is_taken_for_another_of_its_neighbours():
    alone = "\n".join(map(chr, range(0x21, 0x7F)))
    measured = measure_prose([alone] * 200)
    assert not measured["duplicate_lines"].any()
    assert not measured["top_2gram_chars"].any()


def test_generated_code_is_told_by_its_beginning():
    assert measure_code(["# Code generated by protoc. DO NOT EDIT.\nx = 1", "x = 1\n" * 400 + "# do not edit"])["generated"].tolist() == [
        1,
        0,
    ]
