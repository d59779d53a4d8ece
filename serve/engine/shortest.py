"""How long the shortest texts of a grammar are.

Promise: for each rule the bytes of the shortest text it stands for, infinite where it stands for none (`x ::= "a" x` never ends). What
every text must contain next is no longer than the shortest way to an end, so this bounds what looking for it may cost.
Price: one visit to each expression. Source: Knuth's generalisation of Dijkstra's algorithm to grammars (1977).
"""

from __future__ import annotations

import heapq
import json
import math
from typing import Any

__all__ = ["longest_shortest"]

_BYTES, _CLASS, _CLASS_STAR, _EMPTY, _RULE, _SEQUENCE, _CHOICES, _REPEAT = 0, 1, 2, 3, 4, 5, 6, 8
"""Kinds of expressions as xgrammar numbers them; others count as endless."""


def longest_shortest(grammar: Any) -> float:
    """Of all rules of an `xgrammar.Grammar`, the longest shortest text in bytes; inf if a rule stands for no text.

    >>> import xgrammar
    >>> [longest_shortest(xgrammar.Grammar.from_ebnf(f'root ::= {body}')) for body in ('"ab" | "c" "d"?', '"a" root')]
    [1, inf]
    """
    data = json.loads(grammar.serialize_json())
    numbers = data["grammar_expr_data"]
    expressions = [(numbers[at], numbers[at + 2 : at + 2 + numbers[at + 1]]) for at in data["grammar_expr_indptr"]]
    bodies = [rule[1] for rule in data["rules"]]
    parents: list[list[int]] = [[] for _ in expressions]
    missing = [0] * len(expressions)  # parts whose length is not known yet
    known = [0] * len(expressions)  # the sum of the others
    found: dict[int, int] = {}
    heap: list[tuple[int, int]] = []
    for i, (kind, parts) in enumerate(expressions):
        if kind in (_RULE, _REPEAT) and not (kind == _REPEAT and parts[1] == 0):
            parents[bodies[parts[0]]].append(i)
        elif kind in (_SEQUENCE, _CHOICES) and parts:
            missing[i] = len(parts)
            for part in parts:
                parents[part].append(i)
        elif kind in (_BYTES, _CLASS, _CLASS_STAR, _EMPTY, _REPEAT, _SEQUENCE):
            heap.append((len(parts) if kind == _BYTES else int(kind == _CLASS), i))
    heapq.heapify(heap)
    while heap:
        length, i = heapq.heappop(heap)
        if i in found:
            continue
        found[i] = length
        for parent in parents[i]:
            kind, parts = expressions[parent]
            if kind == _SEQUENCE:
                missing[parent] -= 1
                known[parent] += length
                if missing[parent]:
                    continue
            heapq.heappush(heap, (known[parent] if kind == _SEQUENCE else length * parts[1] if kind == _REPEAT else length, parent))
    return max((found.get(body, math.inf) for body in bodies), default=math.inf)
