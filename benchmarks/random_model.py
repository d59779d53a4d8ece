"""Model folders with random weights, for measuring speed at sizes nobody has to train.

Promise: the same bytes for the same shape; bfloat16 Llama folders that every engine reads (config.json, one safetensors file, a byte-level
tokenizer with the full vocabulary). Price: one tensor in memory at a time, some 10 seconds per billion weights.
Scale: matrices have gain 1 and the embedding is small beside what the layers add, so that logits are finite, and a greedy text is not
the last token over and over, as it would be with a tied head and the usual 0.02 everywhere.

    python -m benchmarks.random_model --shape llama-135m --out runs/llama-135m
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

__all__ = ["SHAPES", "write_model"]

SHAPES: dict[str, dict[str, int]] = {
    "llama-135m": {
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "intermediate_size": 1536,
        "vocab_size": 49152,
    },
    "llama-1b": {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "intermediate_size": 8192,
        "vocab_size": 128256,
    },
}
MAX_LENGTH = 8192
EMBEDDING_STD = 0.03
LAST_NORM = 4.0  # so that logits spread by 3 to 5, as a trained model's do
GAINS = {"q_proj": 2.0, "k_proj": 2.0, "o_proj": 0.5}  # attention that picks, and does not drown a token in the mean of all before it
END = "<|endoftext|>"


def write_model(shape: dict[str, int], folder: Path, seed: int = 0) -> None:
    """Write the model folder, whole or not at all. `shape` has the keys of SHAPES' values."""
    scratch = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    (scratch / "config.json").write_text(json.dumps(_config(shape), indent=2) + "\n")
    _write_tensors(_sizes(shape), scratch / "model.safetensors", seed)
    _write_tokenizer(shape["vocab_size"], scratch)
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)


def _config(shape: dict[str, int]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **shape,
        "hidden_act": "silu",
        "max_position_embeddings": MAX_LENGTH,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",  # what readers older than transformers 5 look for
    }


def _sizes(shape: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Every tensor's name and size, in the order they are stored."""
    hidden, inner, dim = shape["hidden_size"], shape["intermediate_size"], shape["head_dim"]
    q, kv = shape["num_attention_heads"] * dim, shape["num_key_value_heads"] * dim
    layer = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (q, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, q),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    layers = {f"model.layers.{i}.{name}.weight": size for i in range(shape["num_hidden_layers"]) for name, size in layer.items()}
    return {"model.embed_tokens.weight": (shape["vocab_size"], hidden), **layers, "model.norm.weight": (hidden,)}


def _write_tensors(sizes: dict[str, tuple[int, ...]], file: Path, seed: int) -> None:
    """A safetensors file: the header's length, the header, the tensors one after the other, each made when it is its turn."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, size in sizes.items():
        start, end = end, end + 2 * torch.Size(size).numel()
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors begin at a multiple of 8 bytes
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(encoded)) + encoded)
        for tensor in _tensors(sizes, seed):
            out.write(tensor.view(torch.uint8).numpy().data)


def _tensors(sizes: dict[str, tuple[int, ...]], seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for name, size in sizes.items():
        if len(size) == 1:
            yield torch.full(size, LAST_NORM if name == "model.norm.weight" else 1.0, dtype=torch.bfloat16)
        else:
            std = EMBEDDING_STD if "embed" in name else GAINS.get(name.split(".")[-2], 1.0) * size[1] ** -0.5
            yield torch.randn(size, generator=generator).mul_(std).to(torch.bfloat16)


def _write_tokenizer(vocab_size: int, folder: Path) -> None:
    """Byte-level BPE: bytes, pairs of letters with or without a space before, and random four-letter pieces of those up to the size."""
    letters = "etaoinshrdlucmfwypvbgkqjxz"
    vocab = {token: i for i, token in enumerate([END, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    pairs = [(first, second) for first in (*letters, "Ġ") for second in letters]
    quads = [("".join(first), "".join(second)) for first in pairs for second in pairs if second[0] != "Ġ"]
    random.Random(0).shuffle(quads)
    merges = (pairs + quads)[: vocab_size - len(vocab)]
    vocab |= {first + second: len(vocab) + i for i, (first, second) in enumerate(merges)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    assert tokenizer.get_vocab_size() == vocab_size
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END, "model_max_length": MAX_LENGTH}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Write one model folder."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.random_model", description="Write a model folder with random weights.")
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the folder; replaced if it is there")
    args = parser.parse_args(argv)
    write_model(SHAPES[args.shape], args.out)
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
