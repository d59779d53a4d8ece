"""A model that summarises by copying lead sentences, tuned from models/tiny-code: ANPD's other task, for measuring drafts.

Promise: reproducible from text alone: passages of some 270 tokens are cut from articles (C4, Wikipedia), the answer is the passage's first
sentences word for word, and our own `sterna tune` (LoRA, merged) learns it; one article in ten is kept out of training, and only those
are measured. It says how much of the held-out answers really are copies, and refuses to pass a model that does not copy. Price: some
minutes on two cores; made once. Source of the task: extractive lead-3 baseline of CNN/DailyMail, which ANPD (arXiv 2404.08698) drafts on.

    python -m benchmarks.summariser                     # makes runs/models/summariser if it is not there
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.console import say

__all__ = ["TEMPLATE", "article_prompts", "copied", "passages", "summariser"]

TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}Article:\n{{ message['content'] }}\n\n{% else %}"
    "Lead:\n{{ message['content'] }}<|endoftext|>{% endif %}{% endfor %}{% if add_generation_prompt %}Lead:\n{% endif %}"
)
PASSAGE_CHARS, LEAD_CHARS = 750, 250
"""A passage ends with the sentence that reaches the first; its lead with the one that reaches the second."""
HELD_OUT_SHARE = 0.1
COPIED_AT_LEAST = 0.5
"""Share of a held-out answer that must be in its article, in runs of at least 4 words, on average."""
STEPS = 60


def passages(text: str) -> Iterator[tuple[str, str]]:
    """(passage, its first sentences) one after the other through an article.

    >>> text = " ".join(f"Sentence number {i} says something rather plain." for i in range(60))
    >>> passage, lead = next(passages(text))
    >>> passage.startswith(lead), len(passage) > 2 * len(lead)
    (True, True)
    """
    sentences = [s for s in re.split(r"(?<=[.!?]) +(?=[A-Z])", " ".join(text.split())) if s]
    chosen: list[str] = []
    lead = ""
    for sentence in sentences:
        chosen.append(sentence)
        joined = " ".join(chosen)
        if not lead and len(joined) >= LEAD_CHARS:
            lead = joined
        if len(joined) >= PASSAGE_CHARS:
            if len(joined) < 1.4 * PASSAGE_CHARS and len(lead) < 0.6 * PASSAGE_CHARS:
                yield joined, lead
            chosen, lead = [], ""


def articles(data: Path) -> list[str]:
    """Every article: C4 documents, one Wikipedia article a line, WikiText's sections put together."""
    c4 = [json.loads(line)["text"] for line in (data / "docs/c4-sample.jsonl").open()]
    wiki = (data / "docs/wiki-sample.txt").read_text().splitlines()
    wikitext = re.split(r"\n = [^=]+ = \n", (data / "text/wikitext2-valid.txt").read_text())
    plain = [re.sub(r" ([,.;:)’'])", r"\1", part.replace(" @-@ ", "-").replace("<unk>", "it")) for part in wikitext]
    return [text for text in c4 + wiki + plain if len(text) > PASSAGE_CHARS]


def split_pairs(data: Path, seed: int = 0) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(training, held-out) pairs; an article is on one side only."""
    found = articles(data)
    random.Random(seed).shuffle(found)
    bound = round(HELD_OUT_SHARE * len(found))
    train, held_out = ([pair for text in part for pair in passages(text)] for part in (found[bound:], found[:bound]))
    random.Random(seed).shuffle(held_out)
    return train, held_out


def article_prompts(data: Path, count: int) -> list[str]:
    """`count` held-out articles as the summariser's prompts."""
    return [f"Article:\n{passage}\n\nLead:\n" for passage, _ in split_pairs(data)[1][:count]]


def summariser(base: Path, data: Path, made: Path, steps: int = STEPS) -> Path:
    """The tuned model's folder, made if it is not there. ValueError if tuning does not teach it to copy."""
    target = made / "summariser"
    if (target / "copied.json").exists():
        return target
    train, _ = split_pairs(data)
    say(f"{target}: tuning {base} on {len(train)} articles and their leads")
    made.mkdir(parents=True, exist_ok=True)
    pairs = made / "summariser-pairs.jsonl"
    pairs.write_text("".join(json.dumps({"messages": _conversation(*pair)}) + "\n" for pair in train))
    _tune(_with_template(base, made / "tiny-code-chat"), pairs, target, steps)
    figures = verify(target, data)
    if figures["copied"] < COPIED_AT_LEAST:
        raise ValueError(f"{target}: copies only {figures['copied']:.0%} of its answers; tune for more steps (--steps)")
    (target / "copied.json").write_text(json.dumps(figures, indent=1))
    return target


def _conversation(passage: str, lead: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": passage}, {"role": "assistant", "content": lead}]


def _with_template(base: Path, folder: Path) -> Path:
    """A copy of the model whose tokenizer has the chat template."""
    folder.mkdir(exist_ok=True)
    for part in base.iterdir():
        shutil.copyfile(part, folder / part.name)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": TEMPLATE}, indent=1))
    return folder


def _tune(base: Path, pairs: Path, target: Path, steps: int) -> None:
    from train.config import TuneConfig
    from train.tune import tune

    tune(
        TuneConfig(
            model=str(base.resolve()),
            data=(str(pairs.resolve()),),
            output=str(target.resolve()),
            rank=64,
            alpha=128.0,
            learning_rate=2e-3,
            steps=steps,
            global_batch=8,
            checkpoint_every=20,
            num_workers=1,
            zero_stage=0,
            max_length=512,
        )
    )


def copied(article: str, answer: str, run: int = 4) -> float:
    """The share of the answer's words that lie in runs of at least `run` words of the article.

    >>> copied("the quick brown fox jumps over it", "the quick brown fox sleeps")
    0.8
    """
    words, source = answer.split(), article.split()
    known = {tuple(source[i : i + run]) for i in range(len(source) - run + 1)}
    inside = [False] * len(words)
    for i in range(len(words) - run + 1):
        if tuple(words[i : i + run]) in known:
            inside[i : i + run] = [True] * run
    return sum(inside) / len(words) if words else 0.0


def verify(folder: Path, data: Path, count: int = 24) -> dict[str, Any]:
    """How far greedy answers to held-out articles are copies: mean share, and the share of answers that begin as the article does."""
    from serve.engine.config import EngineConfig
    from serve.engine.engine import Engine
    from serve.engine.request import Sampling

    pairs = split_pairs(data)[1][:count]
    engine = Engine.load(folder, EngineConfig())
    done = engine.generate(article_prompts(data, count), Sampling(temperature=0, max_tokens=120))
    shares = [copied(passage, d.text) for (passage, _), d in zip(pairs, done, strict=True)]
    leads = [passage.startswith(" ".join(d.text.split()[:6])) for (passage, _), d in zip(pairs, done, strict=True)]
    figures = {"copied": sum(shares) / count, "begins_with_the_lead": sum(leads) / count, "articles": count}
    begin = figures["begins_with_the_lead"]
    say(f"{folder}: {figures['copied']:.0%} of the answers' words are copied; {begin:.0%} begin as the article does")
    return figures


def main() -> int:
    """Make and verify the model."""
    shared = Path("../shared")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path(os.environ.get("STERNA_MODELS", shared / "models")) / "tiny-code")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("STERNA_DATA", shared / "data")))
    parser.add_argument("--made", type=Path, default=Path("runs/models"), help="the model is made here, as `summariser`")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"optimizer steps (default: {STEPS})")
    args = parser.parse_args()
    try:
        print(summariser(args.base, args.data, args.made, args.steps))
    except ValueError as error:
        print(f"benchmarks.summariser: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
