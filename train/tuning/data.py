"""What a tuning run learns from: files and corpora -> sequences to train on, and others held out.

Promise: every line and conversation is either used or counted with the reason why not; the split is a function of the texts alone.
Price: the conversations are held in memory.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs as arrow_fs

from cluster.storage import copy_tree, resolve
from train.conversations import encode, encode_pairs, from_corpus, from_jsonl, split, told
from train.corpus import Sequences, Source
from train.instructions import parse_conversation
from train.model_folder import load_tokenizer
from train.tuning.config import TRAITS, TuneConfig
from train.tuning.preferences import Pairs, parse_pair

__all__ = ["TuningData", "is_file", "open_data", "read_data"]

_DEFAULT_LENGTH = 512
_MESSAGES = "`messages` with an assistant's answer, or a corpus folder from `sterna curate`"
_PREFERENCES = "`chosen` and `rejected`: conversations, or texts beside a `prompt`"


@dataclass(frozen=True, slots=True)
class TuningData:
    """Training and held-out sequences, and the bookkeeping."""

    train: Sequences | Pairs
    held_out: Sequences | Pairs
    counts: dict[str, float]


def read_data(config: TuneConfig, model: Path) -> TuningData:
    """Read, split and encode `config.data` for the model in the folder `model`; preferences come as rows without a reference yet.

    Raises ValueError for a model without a chat template, and for data of which nothing can be used.
    """
    from transformers import AutoConfig

    tokenizer = load_tokenizer(model)
    if not tokenizer.chat_template:
        raise ValueError(f"{config.model}: its tokenizer has no chat template; add one as chat_template in tokenizer_config.json")
    length = _length(config, AutoConfig.from_pretrained(model))
    read = [_read(uri, config) for uri in config.data]
    found = [one for part in read for one in part.found]
    dropped = sum((part.dropped for part in read), Counter[str]())
    train, held_out = split(found, config.max_pairs, config.held_out)
    to_train, unfit = _encoded(train, tokenizer, length, config)
    to_judge, also_unfit = _encoded(held_out, tokenizer, length, config)
    if to_train is None or to_judge is None:
        reasons = unfit if to_train is None else also_unfit
        if reasons["template"]:
            raise ValueError(f"data: {told(reasons)}: the chat template of {config.model} refuses those, or rewrites earlier turns")
        raise ValueError(f"data: no pair fits into {length} tokens; raise --max-length or give shorter conversations")
    counts: dict[str, float] = {"pairs_in": len(found) + dropped.total(), "pairs_unused": len(found) - len(train) - len(held_out)}
    counts |= {"pairs_trained": len(train) - unfit.total(), "pairs_held_out": len(held_out) - also_unfit.total()}
    counts |= {f"dropped.{reason}": number for reason, number in sorted((dropped + unfit + also_unfit).items())}
    return TuningData(to_train, to_judge, counts)


def open_data(uri: str, config: TuneConfig) -> Source:
    """What was saved of a TuningData's part in the folder `uri`."""
    if "://" in uri:
        local = tempfile.mkdtemp(prefix="sterna-tune-")
        copy_tree(uri, local)
        uri = local
    if config.objective == "preferences":
        return Pairs.open(Path(uri))
    return Sequences.open(Path(uri))


def is_file(uri: str) -> bool:
    """Whether `uri` is to be read as a file; a folder is a corpus."""
    filesystem, path = resolve(uri)
    return filesystem.get_file_info(path).type != arrow_fs.FileType.Directory


def _length(config: TuneConfig, model: Any) -> int:
    """Tokens per sequence, beside what a learnt prompt takes of the context."""
    prompt = config.virtual_tokens if TRAITS[config.method].ahead else 0
    context = (getattr(model, "max_position_embeddings", None) or _DEFAULT_LENGTH + prompt) - prompt
    if context < 2:
        raise ValueError(f"virtual_tokens: {prompt} leave no room for text in the model's context of {context + prompt}; take fewer")
    length = config.max_length or min(context, _DEFAULT_LENGTH)
    if length > context:
        ahead = f" less {prompt} virtual tokens" if prompt else ""
        raise ValueError(f"max_length: {length} tokens exceed the model's context of {context + prompt}{ahead}")
    return length


def _read(uri: str, config: TuneConfig) -> Any:
    if config.objective == "preferences":
        return from_jsonl(uri, parse_pair, _PREFERENCES)
    return from_jsonl(uri, parse_conversation, _MESSAGES) if is_file(uri) else from_corpus(uri, config.max_pairs)


def _encoded(found: list[Any], tokenizer: Any, length: int, config: TuneConfig) -> tuple[Sequences | None, Counter[str]]:
    if config.objective == "preferences":
        return encode_pairs(found, tokenizer, length)
    return encode(found, tokenizer, length)
