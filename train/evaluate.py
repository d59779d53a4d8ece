"""`sterna evaluate`: how models do on what none of them was trained on: bits per byte of text, and multiple-choice questions.

Promise: Σ −log₂ p over every token of the text, divided by its UTF-8 bytes, so that models with different tokenizers compare; each
document starts from the model's own beginning-of-text token (train/likelihood.py), each question is answered by likelihood
(train/questions.py). Price: a forward pass per window and per choice. Source: bits per byte as in the Pile (arXiv 2101.00027).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import xxhash

from cluster.artifact import Artifact, Draft, finished, open_artifact, publish
from cluster.console import progress, say
from cluster.figure import bars, table
from cluster.runtime import attached, num_cpus_available
from cluster.storage import absolute, content_digest
from train.config import EvaluateConfig
from train.held_out import Document, read_documents
from train.likelihood import Score, judge
from train.model_folder import load_model, load_tokenizer, open_adapter, open_model, tuned_from
from train.questions import Answered, Question, accuracy, answer_all, read_questions

__all__ = ["evaluate"]

_STAGE = "evaluate"
_DEFAULT_LENGTH = 1024
_Marks = tuple[list[Score], list[Answered]]
"""What a model made of some documents and questions, in their order."""


@dataclass(frozen=True, slots=True)
class _Exam:
    """All that the models are judged on."""

    documents: list[Document]
    questions: list[tuple[str, Question]]
    """(task, question)"""
    counts: dict[str, float]

    def parts(self, number: int) -> list[tuple[list[Document], list[tuple[str, Question]]]]:
        """At most `number` parts of about equal size."""
        number = max(1, min(number, max(len(self.documents), len(self.questions))))
        slices = _slices(self.documents, number)
        slices += [[] for _ in range(number - len(slices))]
        return [(part, self.questions[i::number]) for i, part in enumerate(slices)]


def evaluate(config: EvaluateConfig) -> Artifact:
    """Judge the models and write the tables to `config.output`."""
    models = _named(config.models)
    tasks = _files_by_name(config.tasks)
    digests = {f"model.{name}": _model_digest(uri) for name, uri in models.items()}
    inputs = digests | {f"data.{i}": _data_digest(uri) for i, uri in enumerate(config.data)}
    inputs |= {f"task.{name}": content_digest(uri) for name, uri in tasks.items()}
    if done := finished(config.output, stage=_STAGE, inputs=inputs, config=config):
        say(f"{config.output}: already done")
        return done
    exam = _read(config, tasks)
    with publish(config.output, stage=_STAGE, inputs=inputs, config=config) as draft:
        with attached():
            marks = _judge_all(models, digests, exam, config, draft)
        _describe(draft, marks, exam)
    return open_artifact(config.output, made_by=_STAGE)


def _read(config: EvaluateConfig, tasks: dict[str, str]) -> _Exam:
    documents, unreadable = read_documents(config.data)
    chosen = _bounded(documents, config.max_bytes)
    counts: dict[str, float] = {"documents": len(documents), "documents_judged": len(chosen), "unreadable": unreadable}
    questions = []
    for name, uri in tasks.items():
        found, unusable = read_questions(uri)
        questions += [(name, question) for question in found]
        counts |= {f"questions.{name}": len(found), f"unusable.{name}": unusable}
    return _Exam(chosen, questions, counts)


def _judge_all(models: dict[str, str], digests: dict[str, str], exam: _Exam, config: EvaluateConfig, draft: Draft) -> dict[str, _Marks]:
    """Model -> its marks, by one Ray task per model and part of the exam; finished parts are kept over interruptions."""
    draft.scratch.append("parts")
    folder = draft.dir / "parts"
    folder.mkdir(exist_ok=True)
    parts = exam.parts(num_cpus_available())
    shared = [ray.put(([d.text for d in documents], [q for _, q in questions])) for documents, questions in parts]
    task = ray.remote(_judge_part).options(num_cpus=1, num_gpus=1 if ray.cluster_resources().get("GPU", 0) else 0, max_retries=-1)
    waiting, found = {}, {}
    for name, uri in models.items():
        for number, part in enumerate(shared):
            place = folder / f"{digests[f'model.{name}']}-{number}-of-{len(parts)}.json"
            if place.exists():
                found[name, number] = _from_json(place.read_text())
            else:
                waiting[task.remote(uri, part, config)] = (name, number, place)
    with progress("evaluate", len(waiting), "parts") as advance:
        while waiting:
            (ready,), _ = ray.wait(list(waiting), num_returns=1)
            name, number, place = waiting.pop(ready)
            found[name, number] = _result(ready)
            place.write_text(json.dumps([[asdict(mark) for mark in marks] for marks in found[name, number]]))
            advance(1, name)
    return {name: _in_order(exam, parts, [found[name, number] for number in range(len(parts))]) for name in models}


def _from_json(text: str) -> _Marks:
    scores, answers = json.loads(text)
    return [Score(**score) for score in scores], [Answered(tuple(a["nats"]), tuple(a["num_bytes"]), a["answer"]) for a in answers]


def _in_order(exam: _Exam, parts: list[Any], marks: list[_Marks]) -> _Marks:
    """The parts' marks, in the exam's order."""
    by_document = {
        id(d): score for (documents, _), (scores, _) in zip(parts, marks, strict=True) for d, score in zip(documents, scores, strict=True)
    }
    by_question = {
        id(q): a for (_, asked), (_, answers) in zip(parts, marks, strict=True) for (_, q), a in zip(asked, answers, strict=True)
    }
    return [by_document[id(d)] for d in exam.documents], [by_question[id(q)] for _, q in exam.questions]


def _result(ready: ray.ObjectRef) -> _Marks:
    """A task's marks; a mistake that only the task could see is the user's all the same."""
    try:
        return ray.get(ready)
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, ValueError) else error from None


def _judge_part(uri: str, part: tuple[list[str], list[Question]], config: EvaluateConfig) -> _Marks:
    import torch

    from train.optimize.arithmetic import arithmetic_on

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    base, adapter = _split(uri)
    path, _ = open_model(base)
    model: Any = load_model(path, getattr(torch, arithmetic_on(device, config.precision)))
    context = getattr(model.config, "max_position_embeddings", None) or _DEFAULT_LENGTH
    if adapter:
        from train.tuning.folder import with_adapter

        model = with_adapter(model, open_adapter(adapter)[0])
        context -= getattr(model, "num_virtual_tokens", 0)
    model = model.to(device).eval()
    tokenizer = load_tokenizer(path)
    limits = {"max_length": min(context, config.max_length or _DEFAULT_LENGTH), "batch_tokens": config.batch_tokens}
    texts, questions = part
    return judge(model, tokenizer, texts, overlap=config.overlap, **limits), answer_all(model, tokenizer, questions, **limits)


def _describe(draft: Draft, marks: dict[str, _Marks], exam: _Exam) -> None:
    draft.counts = dict(exam.counts)
    headlines = []
    if exam.documents:
        headlines.append(_describe_text(draft, {name: _by_kind(exam, scores) for name, (scores, _) in marks.items()}))
    if exam.questions:
        headlines.append(_describe_tasks(draft, {name: answers for name, (_, answers) in marks.items()}, exam))
    draft.headline = "; ".join(headlines)


def _by_kind(exam: _Exam, scores: list[Score]) -> dict[str, Score]:
    total: dict[str, Score] = {"all": Score()}
    for document, score in zip(exam.documents, scores, strict=True):
        total["all"] += score
        total[document.kind] = total.get(document.kind, Score()) + score
    return total


def _describe_text(draft: Draft, scores: dict[str, dict[str, Score]]) -> str:
    kinds = ["all", *sorted({kind for by_kind in scores.values() for kind in by_kind} - {"all"})]
    values = {name: {kind: by_kind[kind].bits_per_byte for kind in kinds} for name, by_kind in scores.items()}
    any_model = next(iter(scores.values()))
    draft.counts["bytes"] = any_model["all"].num_bytes
    draft.metrics |= {
        "bits_per_byte": {name: by_kind["all"] for name, by_kind in values.items()},
        "by_kind": values,
        "loss": {name: by_kind["all"].loss for name, by_kind in scores.items()},
    }
    rows = [
        [name, *(f"{values[name][kind]:.3f}" for kind in kinds), f"{by_kind['all'].loss:.3f}", f"{by_kind['all'].num_tokens:,}"]
        for name, by_kind in scores.items()
    ]
    draft.figures |= {
        "bits_per_byte": bars("Held-out text", "bits per byte", values),
        "table": table("Bits per byte", ["model", *kinds, "nats per token", "tokens"], rows),
    }
    scores_json = {m: {k: asdict(s) for k, s in v.items()} for m, v in scores.items()}
    (draft.dir / "scores.json").write_text(json.dumps(scores_json, indent=1))
    return "bits per byte: " + ", ".join(f"{name} {by_kind['all']:.3f}" for name, by_kind in values.items())


def _describe_tasks(draft: Draft, answers: dict[str, list[Answered]], exam: _Exam) -> str:
    names = list(dict.fromkeys(name for name, _ in exam.questions))
    found = {
        model: {task: accuracy([a for a, (name, _) in zip(given, exam.questions, strict=True) if name == task]) for task in names}
        for model, given in answers.items()
    }
    draft.metrics["accuracy"] = {model: {task: asdict(one) for task, one in by_task.items()} for model, by_task in found.items()}
    rows = [
        [model, task, f"{one.num_questions:,}", f"{one.share:.3f} ± {one.error:.3f}", f"{one.per_byte:.3f}"]
        for model, by_task in found.items()
        for task, one in by_task.items()
    ]
    draft.figures |= {
        "accuracy": bars("Multiple choice", "share right", {m: {t: one.share for t, one in v.items()} for m, v in found.items()}),
        "questions": table("Multiple choice", ["model", "task", "questions", "accuracy", "per byte"], rows),
    }
    return "; ".join(f"{task}: " + ", ".join(f"{model} {by[task].share:.0%}" for model, by in found.items()) for task in names)


def _named(models: Sequence[str]) -> dict[str, str]:
    """Name -> folder, from FOLDER or name=FOLDER."""
    found: dict[str, str] = {}
    for entry in models:
        name, separator, uri = entry.partition("=")
        if not separator or "/" in name:
            name, uri = Path(entry.rpartition("+")[2].rstrip("/")).name, entry
        if name in found:
            raise ValueError(f"models: two are called {name!r}; give them as name=FOLDER")
        found[name] = "+".join(map(absolute, uri.split("+", 1)))
    return found


def _files_by_name(entries: Sequence[str]) -> dict[str, str]:
    """Name -> file, from FILE or name=FILE."""
    found: dict[str, str] = {}
    for entry in entries:
        name, separator, uri = entry.partition("=")
        if not separator or "/" in name:
            name, uri = Path(entry).name.removesuffix(".jsonl"), entry
        if name in found:
            raise ValueError(f"tasks: two are called {name!r}; give them as name=FILE")
        found[name] = uri
    return found


def _split(uri: str) -> tuple[str, str]:
    """(model, adapter or nothing) of MODEL or MODEL+ADAPTER."""
    base, _, adapter = uri.partition("+")
    return base, adapter


def _model_digest(uri: str) -> str:
    """Of a model, or of a model and an adapter; says so where the adapter was made for another (which a compressed one may be)."""
    base, adapter = _split(uri)
    digest = open_model(base)[1]
    if not adapter:
        return digest
    folder, own = open_adapter(adapter)
    if tuned_from(folder) not in (None, digest):
        say(f"{adapter}: was tuned from another model than {base}")
    return f"{digest}-{own}"


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
