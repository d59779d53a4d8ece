"""What drafts are measured on: prompts as tokens, and how many tokens of answer to ask for.

* `complete`: models/tiny-code goes on from HumanEval's prompts, 128 tokens (its end token, which it often likes best, does not end it).
* `edit`: the same model is given a file that holds a function (a canonical solution of HumanEval, without its docstring), its earlier
  renamings `f_v2` and `f_v3`, and the first two lines of `f_v4`; it is asked for 128 tokens: the rest of the function and what it makes
  of the next. A model of 6.5M parameters does not follow instructions; it copies a function that it has seen repeated, as a model that
  edits does, and strays now and then (`repeated` says how much of its answers is copied; with one earlier version it is half as much).
* `summarise`: the model of `summariser.py` and articles that it was not tuned on (120 tokens, or its end token).

Pure but for reading the files.
"""

from __future__ import annotations

import ast
import gzip
import json
import re
from dataclasses import dataclass
from pathlib import Path

from benchmarks.summariser import article_prompts

__all__ = ["TASKS", "Problem", "edit_prompt", "problems", "repeated"]

TASKS = ("complete", "edit", "summarise")
NUM_OUTPUT = 128
LONGEST_PROMPT = 480


@dataclass(frozen=True, slots=True)
class Problem:
    """One prompt."""

    prompt: list[int]
    num_output: int
    end: bool = False
    """Whether the model's end token ends the answer."""


def problems(task: str, model: Path, data: Path, count: int) -> list[Problem]:
    """The first `count` problems of a task that fit into LONGEST_PROMPT tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids  # noqa: E731
    if task == "summarise":
        found = [Problem(encode(text), 120, end=True) for text in article_prompts(data, 2 * count)]
    else:
        with gzip.open(data / "code/HumanEval.jsonl.gz", "rt") as lines:
            rows = [json.loads(line) for line in lines]
        if task == "complete":
            found = [Problem(encode(row["prompt"]), NUM_OUTPUT) for row in rows]
        else:
            pairs = [edit_prompt(row["prompt"] + row["canonical_solution"], row["entry_point"]) for row in rows]
            found = [Problem(encode(prompt), NUM_OUTPUT) for prompt, _ in filter(None, pairs)]
    return [p for p in found if len(p.prompt) <= LONGEST_PROMPT][:count]


def edit_prompt(source: str, name: str) -> tuple[str, str] | None:
    """(a file of three versions of a function and the beginning of the fourth, the rest of it); None where the body is too short.

    >>> prompt, rest = edit_prompt("def twice(x):\\n    y = x + x\\n    return y\\n", "twice")
    >>> prompt.count("return y"), prompt[-33:], rest
    (3, '\\n\\n\\ndef twice_v4(x):\\n    y = x + x', '\\n    return y\\n')
    """
    function = next((n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == name), None)
    if function is None:
        return None
    lines = source.splitlines(keepends=True)
    documented = ast.get_docstring(function) is not None
    body = function.body[documented:]
    if not body:
        return None
    head = lines[function.lineno - 1 : function.body[0].lineno - 1]
    code = "".join([*head, *lines[body[0].lineno - 1 : function.end_lineno]]).rstrip() + "\n"
    versions = [re.sub(rf"\b{name}\b", f"{name}_v{i}" if i > 1 else name, code) for i in (1, 2, 3, 4)]
    first, second, rest = versions[3].split("\n", 2)
    return "\n\n".join([*versions[:3], f"{first}\n{second}"]), f"\n{rest}"


def repeated(prompt: list[int], answer: list[int], run: int = 8) -> float:
    """The share of the answer's tokens in runs of at least `run` tokens that are in the prompt.

    >>> repeated([1, 2, 3, 4], [9, 1, 2, 3], run=3)
    0.75
    """
    known = {tuple(prompt[i : i + run]) for i in range(len(prompt) - run + 1)}
    inside = [False] * len(answer)
    for i in range(len(answer) - run + 1):
        if tuple(answer[i : i + run]) in known:
            inside[i : i + run] = [True] * run
    return sum(inside) / len(answer) if answer else 0.0
