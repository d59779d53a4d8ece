"""How sure a given model is of each document: its loss and its margin, read by the project's own engine.

Promise: a document is read by itself, in passes of its own, so its figures do not depend on what else is scored, where or in
which order (on one kind of processor). Price: a forward pass over its first `max_tokens` tokens; each process that scores
loads the model once. A model that cannot be loaded is the user's mistake, before anything is scored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from train.model_folder import open_model

__all__ = ["Measure", "score_texts"]

Measure = Literal["loss", "margin"]

_CHARS_PER_TOKEN = 16  # more than the tokens of any text but runs of blanks have on average


def score_texts(texts: Sequence[str], folder: str, measure: Measure, max_tokens: int) -> npt.NDArray[np.float64]:
    """For each text how unsure the model is of it [n]: larger is less sure.

    loss: mean -log p per token (nats), the first token given. margin: 1 - the mean gap in probability between the two likeliest
    tokens, after "margin sampling" in active learning (Settles 2009). A text of a single token has nothing to be judged by: 0.
    """
    engine = _engine(folder)
    most = min(max_tokens, engine.max_length)
    return np.array([_score(engine, text, measure, most) for text in texts], np.float64)


def _score(engine: Engine, text: str, measure: Measure, most: int) -> float:
    tokens = engine.tokenizer.encode(text[: _CHARS_PER_TOKEN * most])[:most]
    if len(tokens) < 2:
        return 0.0
    (found,) = engine.score([tokens], num_top=2 if measure == "margin" else 0)
    if measure == "loss":
        return -found.logprob / len(found.tokens)
    gaps = [math.exp(token.top[0][1]) - math.exp(token.top[1][1]) for token in found.tokens]
    return 1.0 - math.fsum(gaps) / len(gaps)


@lru_cache(maxsize=1)
def _engine(folder: str) -> Engine:
    """One thread: as many processes score as there are processors."""
    return Engine.load(open_model(folder)[0], EngineConfig(num_threads=1, max_sequences=1, prefix_cache=False, draft="off"))
