"""Which documents are worth training on: the rules of a profile, applied to the measures of many documents at once.

Promise: a document is dropped by the first rule of its profile that it breaks, and the rule's name is the reason; the same
text gets the same verdict in any company. Price: the measures (measure.py); the rules themselves cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.curate.measure import Measures, measure_code, measure_prose
from pipelines.curate.rules import PROFILES, Rule, overridden

__all__ = ["judge", "verdicts"]


def judge(texts: Sequence[str], profile: str, overrides: Mapping[str, Any] | None = None) -> tuple[list[str | None], list[int]]:
    """For each text the name of the first rule of the profile that it breaks, or None; and its number of words.

    >>> judge(["too short"], "web"), judge(["x = 1"], "code")
    ((['gopher.short_document'], [2]), (['code.short_document'], [3]))
    """
    rules = overridden(PROFILES[profile], overrides or {})
    if not texts or not rules:
        return [None] * len(texts), [len(text.split()) for text in texts]
    measures = measure_code(texts) if profile == "code" else measure_prose(texts)
    return verdicts(measures, rules), measures["num_words"].astype(np.int64).tolist()


def verdicts(measures: Measures, rules: Sequence[Rule]) -> list[str | None]:
    """The first rule broken, by document."""
    kept = len(rules)
    first = np.full(len(next(iter(measures.values()))), kept)
    for place in reversed(range(kept)):
        values = measures[rules[place].measure]
        first[(values < rules[place].at_least) | (values > rules[place].at_most)] = place
    names = [*(rule.name for rule in rules), None]
    return [names[place] for place in first.tolist()]
