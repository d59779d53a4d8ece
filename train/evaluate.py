"""`sterna evaluate`: bits per byte of models on text that none of them was trained on.

Promise: Σ −log₂ p over every token of the text, divided by its UTF-8 bytes, so that models with different tokenizers
compare; each document starts from the model's own beginning-of-text token, and one longer than the window is judged in
overlapping windows, each token once, with at least the overlap as its context. Price: a forward pass per window.
Source: bits per byte as in the Pile (arXiv 2101.00027); strided windows as in transformers' perplexity guide.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import xxhash

from cluster.artifact import Artifact, Draft, finished, open_artifact, publish
from cluster.console import progress, say
from cluster.figure import bars, table
from cluster.runtime import attached, num_cpus_available
from cluster.storage import absolute, content_digest
from train.config import EvaluateConfig
from train.held_out import Document, read_documents
from train.model_folder import load_model, open_model

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

__all__ = ["Score", "evaluate", "judge", "windows"]

_STAGE = "evaluate"
_DEFAULT_LENGTH = 1024


@dataclass(frozen=True, slots=True)
class Score:
    """Likelihood of some text under a model."""

    nats: float = 0.0
    """Σ −ln p."""
    num_tokens: int = 0
    num_bytes: int = 0

    def __add__(self, other: Score) -> Score:
        return Score(self.nats + other.nats, self.num_tokens + other.num_tokens, self.num_bytes + other.num_bytes)

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.num_bytes

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.num_tokens


def evaluate(config: EvaluateConfig) -> Artifact:
    """Judge the models on the text and write the table to `config.output`."""
    models = _named(config.models)
    digests = {f"model.{name}": open_model(uri)[1] for name, uri in models.items()}
    inputs = digests | {f"data.{i}": _data_digest(uri) for i, uri in enumerate(config.data)}
    if done := finished(config.output, stage=_STAGE, inputs=inputs, config=config):
        say(f"{config.output}: already done")
        return done
    documents, unreadable = read_documents(config.data)
    chosen = _bounded(documents, config.max_bytes)
    with publish(config.output, stage=_STAGE, inputs=inputs, config=config) as draft:
        with attached():
            scores = _judge_all(models, digests, chosen, config, draft)
        _describe(draft, scores, len(documents), len(chosen), unreadable)
        (draft.dir / "scores.json").write_text(json.dumps({m: {k: asdict(s) for k, s in v.items()} for m, v in scores.items()}, indent=1))
    return open_artifact(config.output, made_by=_STAGE)


def judge(
    model: PreTrainedModel, tokenizer: Any, texts: Sequence[str], *, max_length: int, overlap: float, batch_tokens: int
) -> list[Score]:
    """The score of each text. A tokenizer without a first token has the model guess it uniformly over its vocabulary."""
    import torch

    from train.loss import token_nll

    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    encoded = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    nats = [0.0 if first is not None or not ids else math.log(len(tokenizer)) for ids in encoded]
    pieces = []
    for index, ids in enumerate(encoded):
        tokens = ids if first is None else [first, *ids]
        pieces += [(index, tokens[start:end], scored_from - start) for start, scored_from, end in windows(len(tokens), max_length, overlap)]
    for batch in _batches(pieces, batch_tokens):
        input_ids, labels = _padded([(tokens, scored_from) for _, tokens, scored_from in batch])
        positions = torch.arange(input_ids.shape[1], device=model.device).expand_as(input_ids)
        found = token_nll(model, input_ids.to(model.device), positions, labels.to(model.device)).sum(dim=1, dtype=torch.float64)
        for (index, _, _), value in zip(batch, found.tolist(), strict=True):
            nats[index] += value
    return [Score(n, len(ids), len(text.encode("utf-8"))) for n, ids, text in zip(nats, encoded, texts, strict=True)]


def windows(num_tokens: int, max_length: int, overlap: float) -> Iterator[tuple[int, int, int]]:
    """(start, first position judged, end) of each window over a document whose token 0 is given; every later token is judged once.

    >>> list(windows(10, max_length=4, overlap=0.5))
    [(0, 1, 5), (2, 5, 7), (4, 7, 9), (5, 9, 10)]
    """
    judged = 1
    fresh = max(1, max_length - round(overlap * max_length))
    while judged < num_tokens:
        end = min(num_tokens, max_length + 1 if judged == 1 else judged + fresh)
        yield max(0, end - max_length - 1), judged, end
        judged = end


def _batches(pieces: list[tuple[int, list[int], int]], batch_tokens: int) -> Iterator[list[tuple[int, list[int], int]]]:
    """Windows of about equal length together, at most `batch_tokens` tokens with padding."""
    batch: list[tuple[int, list[int], int]] = []
    for piece in sorted(pieces, key=lambda p: (-len(p[1]), p[0])):
        if batch and (len(batch) + 1) * len(batch[0][1]) > batch_tokens:
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


def _padded(rows: list[tuple[list[int], int]]) -> tuple[Tensor, Tensor]:
    """(input ids, labels) of windows, padded on the right, where causal attention does not see it."""
    import torch

    from train.corpus import IGNORED

    width = max(len(tokens) for tokens, _ in rows) - 1
    inputs = torch.zeros((len(rows), width), dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORED, dtype=torch.long)
    for row, (tokens, scored_from) in enumerate(rows):
        inputs[row, : len(tokens) - 1] = torch.tensor(tokens[:-1])
        labels[row, scored_from - 1 : len(tokens) - 1] = torch.tensor(tokens[scored_from:])
    return inputs, labels


def _judge_all(
    models: dict[str, str], digests: dict[str, str], documents: list[Document], config: EvaluateConfig, draft: Draft
) -> dict[str, dict[str, Score]]:
    """Model -> kind -> score, by one Ray task per model and slice of the documents; finished slices are kept over interruptions."""
    draft.scratch.append("parts")
    parts = draft.dir / "parts"
    parts.mkdir(exist_ok=True)
    slices = _slices(documents, num_cpus_available())
    texts = [ray.put([document.text for document in part]) for part in slices]
    task = ray.remote(_judge_slice).options(num_cpus=1, num_gpus=1 if ray.cluster_resources().get("GPU", 0) else 0, max_retries=-1)
    waiting, found = {}, {}
    for name, uri in models.items():
        for number, text in enumerate(texts):
            place = parts / f"{digests[f'model.{name}']}-{number}-of-{len(slices)}.json"
            if place.exists():
                found[name, number] = [Score(**score) for score in json.loads(place.read_text())]
            else:
                waiting[task.remote(uri, text, config)] = (name, number, place)
    with progress("evaluate", len(waiting), "parts") as advance:
        while waiting:
            (ready,), _ = ray.wait(list(waiting), num_returns=1)
            name, number, place = waiting.pop(ready)
            found[name, number] = _result(ready)
            place.write_text(json.dumps([asdict(score) for score in found[name, number]]))
            advance(1, name)
    return {name: _by_kind(slices, [found[name, number] for number in range(len(slices))]) for name in models}


def _result(ready: ray.ObjectRef) -> list[Score]:
    """A task's scores; a mistake that only the task could see is the user's all the same."""
    try:
        return ray.get(ready)
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, ValueError) else error from None


def _judge_slice(uri: str, texts: list[str], config: EvaluateConfig) -> list[Score]:
    import torch
    from transformers import AutoTokenizer

    from train.loop import use_bfloat16

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    path, _ = open_model(uri)
    dtype = torch.bfloat16 if use_bfloat16(config.precision, device) else torch.float32
    model = load_model(path, dtype).to(device).eval()
    context = getattr(model.config, "max_position_embeddings", None) or _DEFAULT_LENGTH
    length = min(context, config.max_length or _DEFAULT_LENGTH)
    tokenizer = AutoTokenizer.from_pretrained(path)
    return judge(model, tokenizer, texts, max_length=length, overlap=config.overlap, batch_tokens=config.batch_tokens)


def _by_kind(slices: list[list[Document]], scores: list[list[Score]]) -> dict[str, Score]:
    total: dict[str, Score] = {"all": Score()}
    for part, judged in zip(slices, scores, strict=True):
        for document, score in zip(part, judged, strict=True):
            total["all"] += score
            total[document.kind] = total.get(document.kind, Score()) + score
    return total


def _describe(draft: Draft, scores: dict[str, dict[str, Score]], num_documents: int, num_judged: int, unreadable: int) -> None:
    kinds = ["all", *sorted({kind for by_kind in scores.values() for kind in by_kind} - {"all"})]
    values = {name: {kind: by_kind[kind].bits_per_byte for kind in kinds} for name, by_kind in scores.items()}
    any_model = next(iter(scores.values()))
    draft.counts = {
        "documents": num_documents,
        "documents_judged": num_judged,
        "unreadable": unreadable,
        "bytes": any_model["all"].num_bytes,
    }
    draft.metrics = {
        "bits_per_byte": {name: by_kind["all"] for name, by_kind in values.items()},
        "by_kind": values,
        "loss": {name: by_kind["all"].loss for name, by_kind in scores.items()},
    }
    rows = [
        [name, *(f"{values[name][kind]:.3f}" for kind in kinds), f"{by_kind['all'].loss:.3f}", f"{by_kind['all'].num_tokens:,}"]
        for name, by_kind in scores.items()
    ]
    draft.figures = {
        "bits_per_byte": bars("Held-out text", "bits per byte", values),
        "table": table("Bits per byte", ["model", *kinds, "nats per token", "tokens"], rows),
    }
    draft.headline = "bits per byte: " + ", ".join(f"{name} {by_kind['all']:.3f}" for name, by_kind in values.items())


def _named(models: Sequence[str]) -> dict[str, str]:
    """Name -> folder, from FOLDER or name=FOLDER."""
    found: dict[str, str] = {}
    for entry in models:
        name, separator, uri = entry.partition("=")
        if not separator or "/" in name:
            name, uri = Path(entry.rstrip("/")).name, entry
        if name in found:
            raise ValueError(f"models: two are called {name!r}; give them as name=FOLDER")
        found[name] = absolute(uri)
    return found


def _bounded(documents: list[Document], max_bytes: int) -> list[Document]:
    """All documents, or the first by hash of their text that hold `max_bytes` bytes."""
    if not max_bytes:
        return documents
    kept, size = [], 0
    for document in sorted(documents, key=lambda d: xxhash.xxh3_64_intdigest(d.text.encode())):
        if kept and size + document.num_bytes > max_bytes:
            continue
        kept.append(document)
        size += document.num_bytes
    return kept


def _slices(documents: list[Document], number: int) -> list[list[Document]]:
    """The documents in at most `number` parts of about equal bytes."""
    parts: list[list[Document]] = [[] for _ in range(min(number, len(documents)))]
    sizes = [0] * len(parts)
    for document in sorted(documents, key=lambda d: (-d.num_bytes, d.text)):
        least = sizes.index(min(sizes))
        parts[least].append(document)
        sizes[least] += document.num_bytes
    return parts


def _data_digest(uri: str) -> str:
    from train.held_out import is_tokens_folder

    return open_artifact(uri, made_by="tokenize").digest if is_tokens_folder(uri) else content_digest(uri)
