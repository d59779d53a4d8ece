"""A Hugging Face folder of a Llama shape -> a bf16 GGUF file for llama.cpp, with the same weights and the byte-level BPE.

Promise: matrices in bf16, norms in float32, as llama.cpp's own converter stores them; query and key rows are reordered from
transformers' half-split rotary layout to the interleaved one that llama.cpp's Llama expects. The file is published by a rename and made
once for a model. Price: one copy of the weights. Source: GGUF's specification; the `gguf` package writes the container.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

__all__ = ["write_gguf"]

_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_gguf(folder: Path, scratch: Path) -> Path:
    """The GGUF file of a model folder, made in `scratch` if it is not there. ValueError for another architecture."""
    import gguf
    import torch
    from safetensors import safe_open

    config = json.loads((folder / "config.json").read_text())
    if config["architectures"] != ["LlamaForCausalLM"] or config.get("quantization_config"):
        raise ValueError(f"{folder}: only plain Llama shapes are written as GGUF")
    files = sorted(folder.glob("*.safetensors"))
    told = "".join(f"{f.resolve()}{f.stat().st_size}{f.stat().st_mtime_ns}" for f in files)
    target = scratch / f"{folder.name}-{hashlib.sha256(told.encode()).hexdigest()[:12]}.gguf"
    if target.exists():
        return target
    scratch.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "llama")
    _describe(writer, config)
    _vocabulary(writer, folder, config["vocab_size"])
    for file in files:
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                _tensor(writer, name, tensors.get_tensor(name).to(torch.float32), config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return partial.rename(target)


def _describe(writer: Any, config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10000.0)}
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads", heads))
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(32)  # mostly bf16


def _vocabulary(writer: Any, folder: Path, size: int) -> None:
    """The tokenizer's pieces; llama.cpp wants a vocabulary even when it is fed token ids."""
    data = json.loads((folder / "tokenizer.json").read_text())["model"]
    pieces = {index: piece for piece, index in data["vocab"].items()}
    tokens = [pieces.get(i, f"<|unused {i}|>") for i in range(size)]
    merges = [m if isinstance(m, str) else " ".join(m) for m in data["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([1 if i in pieces else 5 for i in range(size)])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)


def _tensor(writer: Any, name: str, value: Any, config: dict[str, Any]) -> None:
    import gguf
    import numpy as np

    stem, _, kind = name.rpartition(".")
    if stem in _WHOLE:
        stored = _WHOLE[stem]
    else:
        layer, _, part = stem.removeprefix("model.layers.").partition(".")
        stored = f"blk.{layer}.{_LAYER[part]}"
    if stored.endswith(("attn_q", "attn_k")):
        heads = config["num_attention_heads"]
        heads = heads if stored.endswith("attn_q") else config.get("num_key_value_heads", heads)
        value = value.reshape(heads, 2, value.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(value.shape)
    array = value.contiguous().numpy().astype(np.float32)
    if array.ndim == 1:
        writer.add_tensor(f"{stored}.{kind}", array)
    else:
        packed = gguf.quants.quantize(array, gguf.GGMLQuantizationType.BF16)
        writer.add_tensor(f"{stored}.{kind}", packed, raw_dtype=gguf.GGMLQuantizationType.BF16)
