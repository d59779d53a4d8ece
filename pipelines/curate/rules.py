"""The quality rules: each a threshold on one measure, with the name that a drop is given; profiles are lists of them.

Promise: the numbers are the papers' own: Gopher (arXiv 2112.11446, A1.1 and table A1), C4 (arXiv 1910.10683, 2.2), FineWeb
(arXiv 2406.17557, 3.6), StarCoder (arXiv 2305.06161, 3.1) and The Stack (arXiv 2211.15533); any of them can be set anew or
switched off by its name, and a name that no rule has is one line. `web` is all three, with C4's sentences counted as
FineWeb does: in every line of three words, not only in those that end in a full stop, which wrapped text would not survive.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["PROFILES", "Rule", "check_overrides", "overridden"]


@dataclass(frozen=True, slots=True)
class Rule:
    """A document breaks the rule when the measure is outside [at_least, at_most]."""

    name: str
    """The reason a drop is given."""
    measure: str
    at_least: float = -math.inf
    at_most: float = math.inf

    def __post_init__(self) -> None:
        if not self.at_least <= self.at_most:
            raise ValueError(f"rules: {self.name} asks for at least {self.at_least:g} and at most {self.at_most:g}: nothing would pass")


GOPHER = (
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
)
_PAGES = (Rule("c4.lorem_ipsum", "lorem_ipsum", at_most=0), Rule("c4.curly_bracket", "curly_brackets", at_most=0))
C4 = (*_PAGES, Rule("c4.few_sentences", "terminated_sentences", at_least=5))
FINEWEB = (
    Rule("fineweb.punctuated_lines", "punctuated_lines", at_least=0.12),
    Rule("fineweb.short_lines", "short_lines", at_most=0.67),
    Rule("fineweb.duplicate_line_chars", "duplicate_line_chars", at_most=0.1),
    Rule("fineweb.newlines", "newlines_per_token", at_most=0.3),
)
WEB = (*GOPHER, *_PAGES, Rule("c4.few_sentences", "sentences", at_least=5), *FINEWEB)
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

PROFILES: dict[str, tuple[Rule, ...]] = {"web": WEB, "gopher": GOPHER, "c4": C4, "fineweb": FINEWEB, "code": CODE, "none": ()}


def overridden(rules: Sequence[Rule], given: Mapping[str, Any]) -> tuple[Rule, ...]:
    """The rules with the thresholds in `given`: a number for the one bound, [least, most] for both, false for no such rule.

    >>> [(r.name, r.at_least, r.at_most) for r in overridden(WEB[:3], {"gopher": {"short_document": 20, "long_document": False}})]
    [('gopher.short_document', 20.0, inf), ('gopher.word_length', 3, 10)]
    """
    flat = _flat(given)
    changed = (_changed(rule, flat[rule.name]) if rule.name in flat else rule for rule in rules)
    return tuple(rule for rule in changed if rule is not None)


def check_overrides(given: Mapping[str, Any], profile: str = "auto") -> None:
    """ValueError, one line, for a name that no rule has, a value that is no threshold of it, and a rule that `profile` never asks."""
    named = {rule.name: rule for rules in PROFILES.values() for rule in rules}
    asked = {rule.name for rule in PROFILES.get(profile, WEB + CODE)}
    for name, value in _flat(given).items():
        if name not in named:
            close = difflib.get_close_matches(name, named, n=1)
            raise ValueError(f"rules: no rule {name!r}; " + (f"did you mean {close[0]!r}?" if close else f"rules: {', '.join(named)}"))
        if _changed(named[name], value) is not None and name not in asked:
            raise ValueError(f"rules: {name} is no rule of profile {profile}; give another --profile, or leave the rule out")


def _flat(given: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names, whether given so or as nested tables."""
    found: dict[str, Any] = {}
    for key, value in given.items():
        found |= {f"{key}.{name}": inner for name, inner in _flat(value).items()} if isinstance(value, Mapping) else {key: value}
    return found


def _changed(rule: Rule, value: Any) -> Rule | None:
    if value is False:
        return None
    both = math.isfinite(rule.at_least) and math.isfinite(rule.at_most)
    bounds = list(value) if isinstance(value, (list, tuple)) else [value]
    if len(bounds) != 1 + both or not all(isinstance(b, (int, float)) and not isinstance(b, bool) and not math.isnan(b) for b in bounds):
        raise ValueError(f"rules: {rule.name} is {value!r}; give {'two numbers, [least, most]' if both else 'a number'}, or false for off")
    if both:
        return replace(rule, at_least=float(bounds[0]), at_most=float(bounds[1]))
    if math.isfinite(rule.at_least):
        return replace(rule, at_least=float(bounds[0]))
    return replace(rule, at_most=float(bounds[0]))
