"""Shortest texts of grammars: against texts found by hand, and quickly for long chains of rules."""

from __future__ import annotations

import doctest
import math
import time

import pytest
import xgrammar

import serve.engine.shortest
from serve.engine.shortest import longest_shortest


def test_the_worked_examples() -> None:
    assert doctest.testmod(serve.engine.shortest).failed == 0


@pytest.mark.parametrize(
    ("grammar", "length"),
    [
        ('root ::= "abc" [a-z]* | "abcd"', 3),
        ('root ::= x{3} | "0123456789"\nx ::= "ab" | "cd" y\ny ::= [0-9]', 6),
        ('root ::= x{0,5} "é"\nx ::= "ab"', 2),
        ('root ::= root root | "a"', 1),
        ('root ::= "a" root | root "b"', math.inf),
        ('root ::= "b" | "a" x\nx ::= "c" x', math.inf),
        ('root ::= "a"{100000}', 100_000),
        ('root ::= ""', 0),
    ],
)
def test_the_shortest_text_of_the_rule_that_needs_most(grammar: str, length: float) -> None:
    assert longest_shortest(xgrammar.Grammar.from_ebnf(grammar)) == length


def test_a_schema_that_needs_itself_has_no_text() -> None:
    schema = '{"$ref":"#/$defs/n","$defs":{"n":{"type":"object","properties":{"n":{"$ref":"#/$defs/n"}},"required":["n"]}}}'
    assert longest_shortest(xgrammar.Grammar.from_json_schema(schema)) == math.inf


def test_a_long_chain_of_rules_takes_no_time() -> None:
    rules = [f"r{i} ::= r{i + 1}" for i in range(3000)]
    grammar = xgrammar.Grammar.from_ebnf("\n".join(["root ::= r0", *rules, 'r3000 ::= "a"']))
    began = time.process_time()
    assert longest_shortest(grammar) == 1
    assert time.process_time() - began < 5.0
