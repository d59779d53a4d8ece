"""The tokenizer: a byte-level BPE trained on the corpus, or one that is given, as a Hugging Face folder.

Promise: any text is encoded without loss (bytes are the alphabet) and `AutoTokenizer` loads the folder, chat template and
special tokens included; text that happens to spell a special token is encoded as text. Price: training takes a few seconds
per 10 MB. After: GPT-2's byte-level BPE; library: tokenizers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

__all__ = ["CHAT_TEMPLATE", "SPECIAL_TOKENS", "Vocabulary", "copy_tokenizer", "open_tokenizer", "save_tokenizer", "train_tokenizer"]

END, PAD = "<|endoftext|>", "<|pad|>"
SPECIAL_TOKENS = (END, PAD, "<|user|>", "<|assistant|>", "<|system|>")
"""Ids 0, 1, …; the first begins and ends texts."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|endoftext|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
"""Each message is `<|role|>`, a newline and its content; the assistant's end with `<|endoftext|>`."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer as tasks receive it."""

    serialized: str
    """tokenizer.json."""
    size: int
    end: int
    """Id that ends a document."""
    pad: int

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids, without special tokens; special tokens spelled in a text are text."""
        return [encoding.ids for encoding in _loaded(self.serialized).encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: list[int]) -> str:
        return str(_loaded(self.serialized).decode(ids, skip_special_tokens=False))


@lru_cache(maxsize=2)
def _loaded(serialized: str) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_str(serialized)
    tokenizer.encode_special_tokens = True
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> str:
    """tokenizer.json of a byte-level BPE trained on the texts; deterministic in their order."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return str(tokenizer.to_str())


def save_tokenizer(serialized: str, folder: Path) -> None:
    """Write a trained tokenizer as a Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(serialized)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "pad_token": PAD,
        "additional_special_tokens": list(SPECIAL_TOKENS[2:]),
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy a tokenizer's files. ValueError when the folder has none that can be used."""
    open_tokenizer(source)
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in ("tokenizer*", "special_tokens_map.json", "chat_template.jinja", "vocab*", "merges.txt", "added_tokens.json"):
        for file in source.glob(pattern):
            shutil.copyfile(file, folder / file.name)


def open_tokenizer(folder: Path) -> Vocabulary:
    """The tokenizer in a Hugging Face folder. ValueError for a missing or broken file, or no end-of-text token."""
    try:
        serialized = (folder / "tokenizer.json").read_text()
        tokenizer = tokenizers.Tokenizer.from_str(serialized)
        config = dict(json.loads((folder / "tokenizer_config.json").read_text()))
    except FileNotFoundError as error:
        raise ValueError(f"{folder}: no {Path(str(error.filename)).name} here; give a Hugging Face tokenizer folder") from None
    except Exception as error:  # tokenizers raises bare Exception
        raise ValueError(f"{folder}: not a tokenizer that can be read ({error})") from None
    end = _id_of(tokenizer, config, "eos_token")
    if end is None:
        raise ValueError(f"{folder}: tokenizer_config.json names no eos_token of the vocabulary; documents need one to end with")
    pad = _id_of(tokenizer, config, "pad_token")
    return Vocabulary(serialized, tokenizer.get_vocab_size(), end, end if pad is None else pad)


def _id_of(tokenizer: tokenizers.Tokenizer, config: dict[str, Any], name: str) -> int | None:
    token = config.get(name)
    token = token.get("content") if isinstance(token, dict) else token
    return tokenizer.token_to_id(token) if isinstance(token, str) else None
