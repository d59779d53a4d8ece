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

    def worth(self, parameters: float, tokens: float, unique: float) -> tuple[float, float]:
        """(N, D) as the law counts them, of `tokens` tokens that are passes over `unique` ones.

        By its own coefficients if it knows of repetition, else as Muennighoff measured: there parameters lose only where text repeats.
        """
        form, own = self.predictor.fitted.form, min(unique, tokens)
        law, repetition = as_law(form, self.predictor.fitted.theta) if "E" in form.coefficients else (None, None)
        if law is not None and (repetition or tokens > own):
            useful = min(parameters, law.optimal_parameters(own))
            parameters = worth(parameters, useful, (repetition or MUENNIGHOFF_REPETITION).parameters)
        return float(parameters), float(worth(tokens, own, (repetition or MUENNIGHOFF_REPETITION).data))

    def loss(self, parameters: float, tokens: float, unique: float) -> Interval:
        """Loss after `tokens` tokens, passes over `unique` ones; see `worth`."""
        if self.predictor.fitted.form.name == "data_constrained":
            return self.predictor.interval(parameters, tokens, min(unique, tokens))
        return self.predictor.interval(*self.worth(parameters, tokens, unique))


def predictor_document(predictor: Predictor, runs: Runs, embeddings: Embeddings) -> dict[str, Any]:
    """As JSON has it."""
    fitted = predictor.fitted
    return {
        "form": fitted.form.name, "theta": fitted.theta.tolist(), "thetas": predictor.thetas.tolist(),
        "residuals": fitted.residuals.tolist(), "stretch": predictor.stretch, "seed": predictor.seed, "embeddings": embeddings,
        "largest": [float(runs.parameters.max()), float(runs.flops.max())],
    }  # fmt: skip


def read_law(folder: Path) -> OwnLaw:
    """The law in a folder of `sterna plan fit`; ValueError where an older Sterna wrote it, or where it cannot choose a size."""
    path = folder / PREDICTOR
    if not path.is_file():
        raise ValueError(f"{folder}: holds no {PREDICTOR}; run `sterna plan fit --output` (or `plan sweep`) again")
    found = cast(Mapping[str, Any], json.loads(path.read_text(encoding="utf-8")))
    none, form = np.zeros(0), FORMS[found["form"]]
    if form.ignores:
        raise ValueError(
            f"{folder}: its law, {form.formula}, says nothing of {form.ignores}, so that no size can be chosen by it; fit runs that vary "
            "parameters and tokens apart from each other"
        )
    fitted = Fitted(
        form,
        np.array(found["theta"]),
        Runs(none, none, none),
        np.array(found["residuals"]),
        np.zeros(0, dtype=np.int64),
        0.0,
    )
    predictor = Predictor(fitted, np.array(found["thetas"]), float(found["stretch"]), int(found["seed"]))
    return OwnLaw(predictor, found["embeddings"], (float(found["largest"][0]), float(found["largest"][1])))
