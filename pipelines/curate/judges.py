"""The steps that judge: by rules, and prose by models too: its language, its quality as people labelled it, its perplexity.

Promise: what is learnt from examples is learnt once, on the driver, from files whose digests are part of the stage's inputs,
and goes to the tasks as one object; each verdict depends on the text, the examples and the configuration alone. Code is never
asked. Price: see language.py, classify.py and perplexity.py; nothing where nothing is configured.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from cluster import figure
from cluster.figure import Figure
from cluster.storage import content_digest, one_line, resolve
from pipelines.curate import classify, perplexity
from pipelines.curate.config import CurateConfig
from pipelines.curate.document import excerpt, replaced
from pipelines.curate.language import check_languages, identify
from pipelines.curate.normalize import clean
from pipelines.curate.reading import read_files
from pipelines.curate.records import open_stream
from pipelines.curate.sources import chunked, find_files
from pipelines.curate.steps import drop_by_quality

__all__ = ["Judges", "drop_by_language", "drop_by_models", "judge_figures", "judge_inputs", "judging_steps", "train_judges"]

_LEAST_EXAMPLES = 10  # of each label
_QUANTILES = (0.5, 0.9, 0.95, 0.99)

Step = Callable[[pa.Table], pa.Table]


@dataclass(frozen=True, slots=True)
class Judges:
    """What was learnt, and what it must say for a document to stay."""

    classifier: classify.Classifier | None = None
    min_quality: float = 0.0
    model: perplexity.CharacterModel | None = None
    max_perplexity: float = float("inf")


def judge_inputs(config: CurateConfig) -> dict[str, str]:
    """Digests of the examples, by the setting that names them. ValueError for one that is not there, and for an unknown language."""
    check_languages(config.languages)
    found = {}
    for name in ("quality_labels", "perplexity_reference"):
        if (uri := getattr(config, name)) is not None:
            filesystem, path = resolve(uri)
            kind = filesystem.get_file_info(path).type.name
            if kind == "NotFound":
                raise ValueError(f"{name}: {uri}: no such file or folder; give one that exists")
            if kind == "Directory" and name == "quality_labels":
                raise ValueError(f"{name}: {uri}: is a folder; give a jsonl file of examples")
            found[name] = content_digest(uri)
    return found


def train_judges(config: CurateConfig) -> tuple[Judges, dict[str, Any]]:
    """The judges that the configuration asks for, and what there is to say of them, for the manifest."""
    quality = {} if config.quality_labels is None else _learn_quality(config.quality_labels, config)
    strange = {} if config.perplexity_reference is None else _learn_prose(config.perplexity_reference, config)
    told = {name: found.pop("told") for name, found in (("quality", quality), ("perplexity", strange)) if found}
    return Judges(**quality, **strange), told


def _learn_quality(uri: str, config: CurateConfig) -> dict[str, Any]:
    texts, labels = _read_labels(uri)
    scores, area, error = classify.cross_validated(texts, labels, config.seed)
    least = config.quality_threshold
    if config.quality_keep is not None:
        least = float(np.quantile(scores[np.array(labels) == 1], 1.0 - config.quality_keep, method="lower"))
    told = {"examples": len(texts), "roc_auc": round(area, 4), "standard_error": round(error, 4), "threshold": least}
    return {"classifier": classify.train(texts, labels), "min_quality": least or 0.0, "told": told}


def _learn_prose(uri: str, config: CurateConfig) -> dict[str, Any]:
    reference = _read_reference(uri)
    own = perplexity.held_out_perplexities(reference)
    most = config.max_perplexity
    if config.perplexity_keep is not None:
        most = float(np.quantile(own, config.perplexity_keep, method="higher"))
    spread = {str(q): round(float(np.quantile(own, q)), 3) for q in _QUANTILES}
    told = {"characters": sum(map(len, reference)), "reference": spread, "limit": most}
    return {"model": perplexity.train(reference), "max_perplexity": most, "told": told}


def judge_figures(told: Mapping[str, Any]) -> dict[str, Figure]:
    """A table of what the judges learnt, for the report; none where nothing was learnt."""
    rows = []
    if quality := told.get("quality"):
        area = f"ROC AUC {quality['roc_auc']:.3f} ± {quality['standard_error']:.3f} in cross-validation"
        limit = "only noted" if quality["threshold"] is None else f"at least {quality['threshold']:.3f}"
        rows.append(("quality, as people labelled it", f"{quality['examples']:,} documents", area, limit))
    if strange := told.get("perplexity"):
        spread = ", ".join(f"{float(share):.0%} below {value:.2f}".replace("%", " %") for share, value in strange["reference"].items())
        learnt, own = f"{strange['characters']:,} characters", f"the reference's own: {spread}"
        rows.append(("perplexity per character", learnt, own, f"at most {strange['limit']:.2f}"))
    columns = ("judge", "learnt from", "how well it knows that", "to be kept")
    return {"judges": figure.table("Judges trained on the spot", columns, rows)} if rows else {}


def judging_steps(config: CurateConfig, judges: Any) -> list[tuple[str, Step]]:
    """The steps to take, in order, with their names; `judges` is a `Judges` or a reference to one."""
    steps: list[tuple[str, Step]] = []
    if config.languages:
        steps.append(("language", partial(drop_by_language, languages=config.languages, min_score=config.min_language_score)))
    steps.append(("quality", partial(drop_by_quality, profile=config.profile, rules=config.rules)))
    if config.quality_labels is not None or config.perplexity_reference is not None:
        steps.append(("models", partial(drop_by_models, judges=judges)))
    return steps


def drop_by_language(documents: pa.Table, languages: Sequence[str], min_score: float) -> pa.Table:
    """Note the language of prose; drop what is in another than these, or in none for sure."""
    texts, places = _prose(documents)
    spoken = documents["language"].to_pylist()
    dropped: dict[int, str] = {}
    for place, (language, score) in zip(places, identify(texts), strict=True):
        spoken[place] = language
        if language not in languages or score < min_score:
            dropped[place] = "language.other"
    return _dropped(replaced(documents, language=spoken), dropped)


def drop_by_models(documents: pa.Table, judges: Judges | Any) -> pa.Table:
    """Note the quality of prose; drop what the classifier or the language model does not let through."""
    found: Judges = judges if isinstance(judges, Judges) else ray.get(judges)
    texts, places = _prose(documents)
    dropped: dict[int, str] = {}
    if found.model is not None and texts:
        strange = found.model.perplexities(texts) > found.max_perplexity
        dropped |= {places[i]: "quality.perplexity" for i in np.flatnonzero(strange)}
    if found.classifier is not None and texts:
        scores = found.classifier.scores(texts)
        quality = documents["quality"].to_pylist()
        for place, score in zip(places, scores.tolist(), strict=True):
            quality[place] = score
        documents = replaced(documents, quality=quality)
        dropped |= {places[i]: "quality.classifier" for i in np.flatnonzero(scores < found.min_quality)}
    return _dropped(documents, dropped)


def _prose(documents: pa.Table) -> tuple[list[str], list[int]]:
    """The texts of the prose that is left, and their rows."""
    kinds, texts = documents["kind"].to_pylist(), documents["text"].to_pylist()
    places = [row for row, text in enumerate(texts) if text is not None and kinds[row] == "prose"]
    return [texts[row] for row in places], places


def _dropped(documents: pa.Table, reasons: dict[int, str]) -> pa.Table:
    """The documents, those rows without their texts and with their reasons."""
    if not reasons:
        return documents
    texts, given, excerpts = (documents[name].to_pylist() for name in ("text", "reason", "excerpt"))
    for row, reason in reasons.items():
        excerpts[row], given[row], texts[row] = excerpt(texts[row]), reason, None
    return replaced(documents, text=texts, reason=given, excerpt=excerpts)


def _read_labels(uri: str) -> tuple[list[str], list[int]]:
    texts, labels = [], []
    for number, line in _lines(uri):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict) or not isinstance(value.get("text"), str) or value.get("label") not in (0, 1):
            raise ValueError(f"quality_labels: {uri}, line {number}: give an object with `text` and `label`, 1 for good, 0 for bad")
        texts.append(clean(value["text"]))
        labels.append(int(value["label"]))
    if min(labels.count(0), labels.count(1)) < _LEAST_EXAMPLES:
        raise ValueError(
            f"quality_labels: {uri}: {labels.count(1)} good and {labels.count(0)} bad; give {_LEAST_EXAMPLES} of each at least"
        )
    return texts, labels


def _lines(uri: str) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, numbered from 1."""
    try:
        with open_stream(uri) as stream:
            yield from ((number, line) for number, line in enumerate(io.BufferedReader(stream, 1 << 20), start=1) if line.strip())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"quality_labels: {uri}: cannot be read ({one_line(error)}); mend the file") from None


def _read_reference(uri: str) -> list[str]:
    tables = chain.from_iterable(read_files(files) for files in chunked(find_files([uri]), 0))
    texts = [clean(text) for table in tables for text in table["text"].to_pylist() if text is not None]
    if sum(map(len, texts)) < 100_000:
        raise ValueError(f"perplexity_reference: {uri}: holds {sum(map(len, texts)):,} characters; give 100,000 at least")
    return texts
