"""Which stored tensors make up a model: one description for every family and for every way to run it.

Promise: names and sizes only, in the order they are used; whatever a family calls them, fused or not, quantised or not. `model.py` and the
native decoder build from the same `Parts`. Price: none, no tensor is read.

A *module* is a name whose `.weight` (or `.weight_packed` …) and `.bias` the folder holds. Modules in one tuple read the same input,
and their outputs stand side by side in that order. NAME[i] is matrix i of the stacked tensor NAME [experts, N, K].
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass

from serve.engine.shape import Shape

__all__ = ["Layer", "Mlp", "Parts", "parts_of", "sizes_of"]

Modules = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Mlp:
    """A feed-forward part."""

    gate_up: Modules
    """Gate then up [2 * size, hidden]; up alone where the MLP is not gated."""
    down: Modules


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A decoder layer. A norm is a module, None where the family has none there."""

    before_attention: str | None
    qkv: Modules
    """Query, key and value rows, [(heads + 2 * kv_heads) * head_dim, hidden]."""
    q_norm: str | None
    k_norm: str | None
    out: Modules
    after_attention: str | None
    before_mlp: str | None
    mlp: Mlp | None
    """The dense MLP; in a sparse layer the shared expert, if there is one."""
    after_mlp: str | None
    router: str | None = None
    """A sparse layer's router, [experts, hidden]."""
    experts: tuple[Mlp, ...] = ()
    shared_gate: str | None = None
    """[1, hidden]: its sigmoid weighs the shared expert."""


@dataclass(frozen=True, slots=True)
class Parts:
    """All of a model."""

    embedding: str
    layers: tuple[Layer, ...]
    norm: str
    head: str | None
    """None: the embedding's matrix, tied."""


def parts_of(shape: Shape, names: Container[str]) -> Parts:
    """The parts of a model whose folder holds the tensors `names`. A name that is missing is found out when it is read."""
    layers = tuple(_layer(shape, i, names) for i in range(shape.num_layers))
    tied = shape.tied or not _held("lm_head", names)
    return Parts("model.embed_tokens", layers, "model.norm", None if tied else "lm_head")


def sizes_of(shape: Shape, parts: Parts) -> Iterator[tuple[Modules, tuple[int, ...]]]:
    """Modules that stand side by side, and the size of their weights together: [N, K] of matrices, [N] of norms."""
    hidden, heads, kv_heads = shape.hidden_size, shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    norms = [(parts.norm, hidden)]
    for module in (parts.embedding, parts.head):
        if module is not None:
            yield (module,), (shape.vocab_size, hidden)
    for layer in parts.layers:
        yield layer.qkv, (heads + 2 * kv_heads, hidden)
        yield layer.out, (hidden, heads)
        norms += [(norm, hidden) for norm in (layer.before_attention, layer.after_attention, layer.before_mlp, layer.after_mlp) if norm]
        whole = shape.qk_norm == "whole"
        qk_norms = ((layer.q_norm, heads if whole else shape.head_dim), (layer.k_norm, kv_heads if whole else shape.head_dim))
        norms += [(norm, size) for norm, size in qk_norms if norm]
        mlps = [(layer.mlp, shape.experts.shared_size if layer.router and shape.experts else shape.mlp_size)] if layer.mlp else []
        for mlp, size in [*mlps, *((expert, shape.experts.size) for expert in layer.experts if shape.experts)]:
            yield mlp.gate_up, (size * (2 if shape.gated else 1), hidden)
            yield mlp.down, (hidden, size)
    for norm, size in norms:
        yield (norm,), (size,)


def _held(module: str, names: Container[str]) -> bool:
    return f"{module}.weight" in names or f"{module}.weight_packed" in names


def _layer(shape: Shape, index: int, names: Container[str]) -> Layer:
    name = f"model.layers.{index}"
    attention, mlp = f"{name}.self_attn", f"{name}.mlp"
    four = _held(f"{name}.pre_feedforward_layernorm", names)  # Gemma 2 and 3: before and after both
    after_only = not four and _held(f"{name}.post_feedforward_layernorm", names)  # OLMo 2 and 3
    after_attention = f"{name}.post_attention_layernorm"
    sparse = _sparse(shape, name, names) if shape.sparse[index] else {}
    dense = None if shape.sparse[index] else _mlp(mlp, shape.gated, names)
    return Layer(
        before_attention=None if after_only else f"{name}.input_layernorm",
        qkv=_first(names, (f"{attention}.qkv_proj",), tuple(f"{attention}.{p}_proj" for p in "qkv")),
        q_norm=f"{attention}.q_norm" if shape.qk_norm else None,
        k_norm=f"{attention}.k_norm" if shape.qk_norm else None,
        out=(f"{attention}.o_proj",),
        after_attention=after_attention if four or after_only else None,
        before_mlp=f"{name}.pre_feedforward_layernorm" if four else None if after_only or shape.parallel else after_attention,
        after_mlp=f"{name}.post_feedforward_layernorm" if four or after_only else None,
        **{"mlp": dense} | sparse,
    )


def _first(names: Container[str], *choices: Modules) -> Modules:
    """The first of the choices whose modules are stored; the last if none is."""
    return next((modules for modules in choices if all(_held(module, names) for module in modules)), choices[-1])


def _mlp(name: str, gated: bool, names: Container[str]) -> Mlp:
    if not gated:
        return Mlp((f"{name}.c_fc",), (f"{name}.c_proj",))
    gate_up = _first(names, (f"{name}.gate_up_proj",), (f"{name}.gate_proj", f"{name}.up_proj"))
    return Mlp(gate_up, (f"{name}.down_proj",))


def _sparse(shape: Shape, layer: str, names: Container[str]) -> dict[str, object]:
    """The router and experts, one module per expert and projection, or stacked as transformers 5 holds them."""
    assert shape.experts is not None
    name = next((f"{layer}.{block}" for block in ("mlp", "block_sparse_moe") if _router(f"{layer}.{block}", names)), f"{layer}.mlp")
    shared = f"{name}.shared_expert"
    return {
        "router": _router(name, names) or f"{name}.gate",
        "experts": tuple(_expert(name, i, names) for i in range(shape.experts.count)),
        "mlp": _mlp(shared, True, names) if shape.experts.shared_size else None,
        "shared_gate": f"{shared}_gate" if shape.experts.shared_size else None,
    }


def _router(block: str, names: Container[str]) -> str | None:
    return next((f"{block}.{router}" for router in ("gate", "router", "router.layer") if _held(f"{block}.{router}", names)), None)


def _expert(block: str, index: int, names: Container[str]) -> Mlp:
    stacks = (
        (f"{block}.experts.gate_up_proj", f"{block}.experts.down_proj"),
        (f"{block}.input_linear.weight", f"{block}.output_linear.weight"),
    )
    for gate_up, down in stacks:
        if gate_up in names:
            return Mlp((f"{gate_up}[{index}]",), (f"{down}[{index}]",))
    name = f"{block}.experts.{index}"
    if _held(f"{name}.w1", names):  # Mixtral's older names: w1 gate, w3 up, w2 down
        return Mlp((f"{name}.w1", f"{name}.w3"), (f"{name}.w2",))
    return _mlp(name, True, names)
