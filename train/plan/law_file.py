"""A fitted law in a file: what `sterna plan fit` and `plan sweep` hand to `sterna plan run`.

Promise: what is read again predicts, value and interval, what the one that was written predicted. Price: some kilobytes (a row of
coefficients a resample).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from train.plan.extrapolate import Predictor
from train.plan.fit import Fitted
from train.plan.forms import FORMS, as_law
from train.plan.laws import MUENNIGHOFF_REPETITION, Interval, worth
from train.plan.runs import Runs

__all__ = ["PREDICTOR", "Embeddings", "OwnLaw", "predictor_document", "read_law"]

PREDICTOR = "predictor.json"
Embeddings = Literal["included", "excluded", "unsaid"]


@dataclass(frozen=True, slots=True)
class OwnLaw:
    """A law of one's own runs, ready to predict."""

    predictor: Predictor
    embeddings: Embeddings
    """Whether its N counts the embeddings; where the table did not say, it is taken to."""
    largest: tuple[float, float]
    """(parameters, FLOPs) of the largest runs that it was fitted to."""

    @property
    def counts_embeddings(self) -> bool:
        """How N is to be counted for it."""
        return self.embeddings != "excluded"

    def loss(self, parameters: float, tokens: float, unique: float) -> Interval:
        """Loss after `tokens` tokens, passes over `unique` ones: by the law itself if it knows of repetition, else as Muennighoff measured.

        What repeated tokens (and, of a law with an optimum, surplus parameters) are worth is put in their place.
        """
        form, own = self.predictor.fitted.form, min(unique, tokens)
        if form.name == "data_constrained":
            return self.predictor.interval(parameters, tokens, own)
        fresh = worth(tokens, own, MUENNIGHOFF_REPETITION.data)
        if tokens > own and "E" in form.coefficients:
            useful = min(parameters, as_law(form, self.predictor.fitted.theta)[0].optimal_parameters(own))
            parameters = worth(parameters, useful, MUENNIGHOFF_REPETITION.parameters)
        return self.predictor.interval(float(parameters), float(fresh))


def predictor_document(predictor: Predictor, runs: Runs, embeddings: Embeddings) -> dict[str, Any]:
    """As JSON has it."""
    fitted = predictor.fitted
    return {
        "form": fitted.form.name, "theta": fitted.theta.tolist(), "thetas": predictor.thetas.tolist(),
        "residuals": fitted.residuals.tolist(), "stretch": predictor.stretch, "seed": predictor.seed, "embeddings": embeddings,
        "largest": [float(runs.parameters.max()), float(runs.flops.max())],
    }  # fmt: skip


def read_law(folder: Path) -> OwnLaw:
    """The law in a folder of `sterna plan fit`; ValueError where an older Sterna wrote it."""
    path = folder / PREDICTOR
    if not path.is_file():
        raise ValueError(f"{folder}: holds no {PREDICTOR}; run `sterna plan fit --output` (or `plan sweep`) again")
    found = cast(Mapping[str, Any], json.loads(path.read_text(encoding="utf-8")))
    none = np.zeros(0)
    fitted = Fitted(
        FORMS[found["form"]],
        np.array(found["theta"]),
        Runs(none, none, none),
        np.array(found["residuals"]),
        np.zeros(0, dtype=np.int64),
        0.0,
    )
    predictor = Predictor(fitted, np.array(found["thetas"]), float(found["stretch"]), int(found["seed"]))
    return OwnLaw(predictor, found["embeddings"], (float(found["largest"][0]), float(found["largest"][1])))
