"""Which documents are worth training on: named rules, each a threshold on one measure, in a profile for each kind of text.

Promise: a document is dropped by the first rule of its profile that it breaks, and the rule's name is the reason; the same
text gets the same verdict in any company. The numbers are the papers' own: Gopher (arXiv 2112.11446, A1.1), C4 (arXiv
1910.10683, 2.2), FineWeb (arXiv 2406.17557, 3.6), StarCoder (arXiv 2305.06161, 3.1) and The Stack (arXiv 2211.15533).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.curate.measure import Measures, measure_code, measure_prose

__all__ = ["PROFILES", "Rule", "judge", "verdicts"]


@dataclass(frozen=True, slots=True)
class Rule:
    """A document breaks the rule when the measure is outside [at_least, at_most]."""

    name: str
    """The reason a drop is given."""
    measure: str
    at_least: float = float("-inf")
    at_most: float = float("inf")

    def __post_init__(self) -> None:
        assert self.at_least <= self.at_most, f"{self.name}: no value keeps it"


WEB = (
    Rule("gopher.short_document", "num_words", at_least=50),
    Rule("gopher.long_document", "num_words", at_most=100_000),
    Rule("gopher.word_length", "mean_word_chars", at_least=3, at_most=10),
    Rule("gopher.hashes", "hashes_per_word", at_most=0.1),
    Rule("gopher.ellipses", "ellipses_per_word", at_most=0.1),
    Rule("gopher.bullet_lines", "bullet_lines", at_most=0.9),
    Rule("gopher.ellipsis_lines", "ellipsis_lines", at_most=0.3),
    Rule("gopher.words_without_letters", "letter_words", at_least=0.8),
    Rule("gopher.stop_words", "stop_words", at_least=2),
    Rule("gopher.duplicate_lines", "duplicate_lines", at_most=0.3),
    Rule("gopher.duplicate_line_chars", "duplicate_line_chars", at_most=0.2),
    Rule("gopher.duplicate_paragraphs", "duplicate_paragraphs", at_most=0.3),
    Rule("gopher.duplicate_paragraph_chars", "duplicate_paragraph_chars", at_most=0.2),
    *(Rule(f"gopher.top_{n}gram", f"top_{n}gram_chars", at_most=most) for n, most in ((2, 0.20), (3, 0.18), (4, 0.16))),
    *(
        Rule(f"gopher.duplicate_{n}gram", f"duplicate_{n}gram_chars", at_most=most)
        for n, most in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
    ),
    Rule("c4.lorem_ipsum", "lorem_ipsum", at_most=0),
    Rule("c4.curly_bracket", "curly_brackets", at_most=0),
    Rule("c4.few_sentences", "sentences", at_least=5),
    Rule("fineweb.punctuated_lines", "punctuated_lines", at_least=0.12),
    Rule("fineweb.short_lines", "short_lines", at_most=0.67),
    Rule("fineweb.duplicate_line_chars", "duplicate_line_chars", at_most=0.1),
    Rule("fineweb.newlines", "newlines_per_word", at_most=0.3),
)

CODE = (
    Rule("code.short_document", "num_words", at_least=20),
    Rule("code.long_document", "num_chars", at_most=1_000_000),
    Rule("code.long_line", "longest_line", at_most=1000),
    Rule("code.long_lines", "mean_line", at_most=100),
    Rule("code.few_letters", "letters", at_least=0.25),
    Rule("code.mostly_digits", "digits", at_most=0.3),
    Rule("code.repeated_lines", "duplicate_line_chars", at_most=0.6),
    Rule("code.generated", "generated", at_most=0),
)

PROFILES: dict[str, tuple[Rule, ...]] = {"web": WEB, "code": CODE}


def judge(texts: Sequence[str], profile: str) -> tuple[list[str | None], list[int]]:
    """For each text the name of the first rule of the profile that it breaks, or None; and its number of words.

    >>> judge(["too short"], "web"), judge(["x = 1"], "code")
    ((['gopher.short_document'], [2]), (['code.short_document'], [3]))
    """
    if not texts:
        return [], []
    measures = measure_code(texts) if profile == "code" else measure_prose(texts)
    return verdicts(measures, PROFILES[profile]), measures["num_words"].astype(np.int64).tolist()


def verdicts(measures: Measures, rules: Sequence[Rule]) -> list[str | None]:
    """The first rule broken, by document."""
    kept = len(rules)
    first = np.full(len(next(iter(measures.values()))), kept)
    for place in reversed(range(kept)):
        values = measures[rules[place].measure]
        first[(values < rules[place].at_least) | (values > rules[place].at_most)] = place
    names = [*(rule.name for rule in rules), None]
    return [names[place] for place in first.tolist()]
