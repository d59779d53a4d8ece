"""Which documents to train on, within a budget, and in which order.

Promise: the choice and the order are functions of the set of documents and the configuration: a document's key depends on its
id, its score and the seed. Price: a pass over the texts for each question asked of them (passes.py), and some 80 bytes a document
on the driver. Ways to choose: towards a target by importance resampling (DSIR, arXiv 2302.03169); by what a model is unsure of
(active learning; the middle after arXiv 2309.04564); at random; each, if wanted, then made diverse (resample.cover).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from cluster import figure
from cluster.figure import Figure
from pipelines.curate.config import CurateConfig
from pipelines.curate.curriculum import competence, ranks
from pipelines.curate.passes import Part, covering, identities, importance, num_tokens, rarity, target_counts, unsureness
from pipelines.curate.records import Fields
from pipelines.curate.resample import Floats, best_within, gumbel, uniform
from pipelines.curate.spans import Bools, Ints

__all__ = ["Choice", "choose", "figures", "summary"]

_BINS = 20
_POINTS = 50


@dataclass(frozen=True, slots=True)
class Choice:
    """What becomes of the documents, in the order of the parts; parallel arrays [n]."""

    chosen: Bools
    score: Floats
    """Log importance weight, or how unsure the model is; nan where nothing was asked."""
    order: Ints
    """Place in the order of training; -1 for those that are not chosen, and for all where no order is asked."""
    difficulty: Floats
    """What the order goes by; nan where there is none."""
    size: Ints
    """What counts towards the budget: 1, characters or tokens."""
    num_chars: Ints


def choose(parts: Sequence[Part], config: CurateConfig, folder: str) -> Choice:
    """Choose among the documents of the parts and put them in order. Ray must be attached; `folder`: for a shuffle's files."""
    ids, num_chars = identities(parts)
    score, size, chosen = np.full(ids.size, np.nan), np.ones(ids.size, np.int64), np.ones(ids.size, bool)
    if config.selects:
        score = _scores(parts, config, ids.size)
        size = _sizes(parts, num_chars, config)
        budget = _budget(ids.size, config)
        chosen = best_within(_keys(score, ids, config), ids, size, round(budget * config.select_pool))
        if config.select_pool > 1:
            pool, places = _those(parts, chosen)
            chosen = np.zeros(ids.size, bool)
            chosen[covering(pool, places, ids, size, budget, config.seed, folder)] = True
    order, difficulty = np.full(ids.size, -1, np.int64), np.full(ids.size, np.nan)
    if config.order != "none":
        difficulty[chosen] = _difficulty(_those(parts, chosen)[0], num_chars[chosen], config)
        order[chosen] = ranks(
            -difficulty[chosen] if config.order_reversed else difficulty[chosen], ids[chosen], num_chars[chosen],
            pacing=config.order_pacing, start=config.order_start, full=config.order_full, seed=config.seed,
        )  # fmt: skip
    return Choice(chosen, score, order, difficulty, size, num_chars)


def _scores(parts: Sequence[Part], config: CurateConfig, num_documents: int) -> Floats:
    if config.select_target:
        return importance(parts, target_counts(config.select_target, Fields(config.text_field, config.id_field, config.date_field)))
    if config.select_model:
        return unsureness(parts, config.select_model, config.select_by, config.model_tokens)
    return np.full(num_documents, np.nan)


def _keys(score: Floats, ids: Any, config: CurateConfig) -> Floats:
    """The larger, the sooner chosen."""
    if config.select_target:
        return score + gumbel(ids, config.seed)
    if not config.select_model:
        return uniform(ids, config.seed)
    if config.select_prefer == "middle":
        return -np.abs(score - np.median(score)) if score.size else score
    return score if config.select_prefer == "high" else -score


def _sizes(parts: Sequence[Part], num_chars: Ints, config: CurateConfig) -> Ints:
    """What each document takes of the budget."""
    if config.select_chars is not None:
        return num_chars
    if config.select_tokens is not None:
        return num_tokens(parts, config.select_tokenizer or config.select_model)
    return np.ones(num_chars.size, np.int64)


def _budget(num_documents: int, config: CurateConfig) -> int:
    if config.select_share is not None:
        return max(1, round(config.select_share * num_documents))
    return config.select_documents or config.select_chars or config.select_tokens or 0


def _difficulty(parts: Sequence[Part], num_chars: Ints, config: CurateConfig) -> Floats:
    if config.order == "length":
        return num_chars.astype(np.float64)
    if config.order == "rarity":
        return rarity(parts)
    return unsureness(parts, config.order_model or config.select_model, "loss", config.model_tokens)


def _those(parts: Sequence[Part], wanted: Bools) -> tuple[list[Part], list[Ints]]:
    """The parts' wanted documents, and for each part their places among all."""
    bounds = pairwise(np.cumsum([0, *map(len, parts)]).tolist())
    places = [begin + np.flatnonzero(wanted[begin:end]) for begin, end in bounds]
    starts = np.cumsum([0, *map(len, parts)]).tolist()
    return [Part(part.uri, part.rows[at - start]) for part, at, start in zip(parts, places, starts, strict=False)], places


def summary(choice: Choice, config: CurateConfig) -> dict[str, float | str]:
    """For the manifest: how it was chosen, from how much, the least score that was taken, and the order."""
    found: dict[str, float | str] = {"chosen_by": config.chosen_by, "candidates": choice.chosen.size, "chosen": int(choice.chosen.sum())}
    if config.selects:
        found |= {"candidates_size": int(choice.size.sum()), "chosen_size": int(choice.size[choice.chosen].sum())}
    taken = choice.score[choice.chosen]
    if taken.size and not np.isnan(taken).any():
        found |= {
            "mean_score": float(choice.score.mean()),
            "mean_score_chosen": float(taken.mean()),
            "least_score_chosen": float(taken.min()),
        }
    return found | ({"order": config.order, "order_pacing": config.order_pacing} if config.order != "none" else {})


def figures(choice: Choice, config: CurateConfig) -> dict[str, Figure]:
    """How the scores of all and of the chosen lie, and how difficulty rises along the order."""
    found: dict[str, Figure] = {}
    per_char = choice.score / np.maximum(choice.num_chars, 1) if config.select_target else choice.score
    if config.selects and choice.chosen.any() and not np.isnan(per_char).any():
        edges = np.linspace(float(per_char.min()), float(per_char.max()) + 1e-12, _BINS + 1)
        shares = {
            name: (((edges[1:] + edges[:-1]) / 2).tolist(), (np.histogram(of, edges)[0] / of.size).tolist())
            for name, of in (("all", per_char), ("chosen", per_char[choice.chosen]))
        }
        what = "log importance weight per character" if config.select_target else f"the model's {config.select_by}"
        found["selection"] = figure.lines("Scores of all documents and of the chosen", what, "share of documents", shares)
    if config.order != "none" and choice.chosen.any():
        found["order"] = _order_figure(choice, config)
    return found


def _order_figure(choice: Choice, config: CurateConfig) -> Figure:
    """Mean difficulty, as a share of the corpus that is easier, along the order; and what the pacing admits."""
    places = np.flatnonzero(choice.chosen)
    along = places[np.argsort(choice.order[places])]
    hardness = -choice.difficulty if config.order_reversed else choice.difficulty
    easier = np.empty(choice.chosen.size)
    easier[places[np.argsort(hardness[places], kind="stable")]] = (np.arange(places.size) + 0.5) / places.size
    groups = [g for g in np.array_split(along, min(_POINTS, along.size)) if g.size]
    trained = np.cumsum(choice.num_chars[along]) / max(1, int(choice.num_chars[along].sum()))
    ends = np.cumsum([g.size for g in groups])
    x = trained[ends - 1].tolist()
    series = {"mean difficulty": (x, [float(easier[g].mean()) for g in groups])}
    if config.order_pacing != "sorted":
        series["admitted"] = (x, [competence(config.order_pacing, config.order_start, config.order_full, t) for t in x])
    title = f"Order by {config.order}, {config.order_pacing} pacing"
    return figure.lines(title, "share of the corpus trained on", "difficulty (share that is easier)", series)
