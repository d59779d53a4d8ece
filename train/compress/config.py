"""Settings of `sterna compress` and `sterna diverge`: which models, judged on which prompts, within which budget.

Promise: a wrong setting is one line before any model is loaded. Price: none; this file imports neither ray nor torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import field
from typing import Literal

from cluster.settings import settings
from serve.engine.config import EngineConfig
from train.compress.options import Option, parse_options

__all__ = ["METRICS", "CompressConfig", "DivergeConfig", "parse_budget"]

METRICS: Mapping[str, float] = {"flips": 1.0, "kl": math.inf}
"""What a budget may bound, and the most that it can be: the share of divergent tokens, and the mean KL in nats per token."""

_SEARCHED = "int8,int4,int4-g32"
_UNIFORM = "int8"
_RECOVERY = ("recover_steps", "recover_prompts", "recover_workers")


def parse_budget(entries: tuple[str, ...]) -> dict[str, float]:
    """Metric -> bound, from `flips=0.02`, `kl=0.01`; a percentage may be written as one. ValueError for anything else.

    >>> parse_budget(("flips=2%", "kl=0.01"))
    {'flips': 0.02, 'kl': 0.01}
    """
    found: dict[str, float] = {}
    for entry in entries:
        name, equals, text = (part.strip() for part in entry.partition("="))
        if not equals or name not in METRICS:
            raise ValueError(f"budget: {entry!r} is not understood; say flips=0.02 (share of tokens) or kl=0.01 (nats per token)")
        if name in found:
            raise ValueError(f"budget: {name} is given twice; give it once")
        try:
            bound = float(text[:-1]) / 100 if text.endswith("%") else float(text)
        except ValueError:
            raise ValueError(f"budget: {text!r} is not a number; say for instance {name}=0.02") from None
        if not 0 <= bound <= METRICS[name] or math.isinf(bound):
            raise ValueError(f"budget: {entry!r} is out of range; {name} is at least 0" + (" and at most 1" if name == "flips" else ""))
        found[name] = bound
    return found


@settings
class CompressConfig:
    """Compress a model's weights and certify what that does to its tokens.

    You say how many tokens may differ from those of the original; the search finds, matrix by matrix, the smallest (or fastest) form that
    keeps to it, and tests that on prompts that nothing else has seen. --budget flips=0.02 reads: on prompts of this kind, of 100 tokens
    that the original writes at most 2 would be others, with 95 % confidence. Without a budget every linear layer becomes the one option of
    --options, and the certificate says what that did.

    Give prompts of the kind that the model will see, some hundreds: the fewer there are, the more careful the search has to be. It ends
    with exit code 3 where a budget cannot be kept to; the best that was reached is then in --output all the same. A run that was
    interrupted goes on when it is started again. With --work FOLDER a second budget begins with what the first one worked out.
    """

    model: str
    """Folder of the model to compress: from pretrain or tune, or any Hugging Face folder of a causal language model."""
    output: str = "runs/compress"
    """Folder to write: a Hugging Face folder in the compressed-tensors format, with compression.json and a model card beside it."""
    prompts: str = ""
    """jsonl(.gz) file with `prompt` or `messages` per line: calibration, search and certificate each take other ones of them."""
    tokens: str = ""
    """Tokens folder (from tokenize): prompts are then the beginnings of its held-out documents. Give this or --prompts."""
    budget: tuple[str, ...] = ()
    """How far the tokens may differ, such as flips=0.02 or kl=0.01, on fresh prompts with 95 % confidence: the smallest model that
    keeps to all of them is searched for. Without a budget every matrix becomes the one option."""
    objective: Literal["bytes", "latency"] = "bytes"
    """What is made small within the budget: bytes on disk, or the time of a step, measured with this machine's kernels."""
    options: str = ""
    """What a matrix may become, with commas between; any matrix may also be kept. Integers: int8 (by rows), int8-gptq, int8-gptq-g64 (a
    scale per 64 columns), int4 (GPTQ, by 64), int4-g32, int4-rtn, and int2 to int7 likewise. Smaller on disk only, since no kernel
    computes with them as stored: int2, int3, int5 to int7, sparse50-wanda, 2:4-sparsegpt, rank50 and their like. Of all matrices of a
    block, or of its attention or MLP, together: drop-block, drop-attention, drop-mlp. w8a8 is none: there is no kernel for activations
    of 8 bits. By default int8,int4,int4-g32 with a budget and int8 (round to nearest) without."""
    export: Literal["compressed-tensors", "dense"] = "compressed-tensors"
    """How it is written: packed, or as plain weights of the original's type that any tool reads and that save nothing on disk."""
    lm_head: bool = False
    """Also compress the output layer, where it is not tied to the embedding; kept by default, since it is the most sensitive one."""
    num_prompts: int = 128
    """Held-out prompts that the certificate is about, drawn by --seed; intervals shrink with its square root."""
    search_prompts: int = 128
    """Other prompts, which the search judges candidates on."""
    calibration_prompts: int = 64
    """Yet other prompts, whose texts show what the matrices' inputs look like (GPTQ, Wanda and SparseGPT ask that)."""
    prompt_tokens: int = 64
    """Length in tokens of the prompts cut from held-out documents; prompts from a file are used whole."""
    completion_tokens: int = 64
    """Length in tokens of the original's greedy completions; the first divergent token is censored there."""
    num_workers: int = 1
    """Processors of the Ray cluster that judge whole plans side by side; 1 is this process alone."""
    recover: Literal["", "norms", "lora", "full"] = ""
    """Let the compressed model learn the original's distribution again, on the original's own completions. norms: its norms, biases and
    the scales of its integers move; lora: these, and low-rank updates of the other linear layers; full: all that is not an integer or a
    zero. With a budget a smaller plan than the one that passed is recovered, and taken if it then keeps to the budget."""
    recover_steps: int = 200
    """Training steps of 16 completions each."""
    recover_prompts: int = 256
    """Further prompts, which recovery learns on."""
    recover_workers: int = 1
    """Ray Train workers for it."""
    work: str = ""
    """Folder for what another run with the same model and prompts can use again (completions, every option of every matrix and its harm,
    judged plans); by default it stands inside the unfinished output, so that an interrupted run goes on, and is gone when that is
    published. It takes about the model's bytes for every two options."""
    seed: int = 0
    """Draws the prompts and the bootstrap."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """The judging engine's settings (threads, memory for KV); its number type is the judging's own business."""

    def __post_init__(self) -> None:
        parse_budget(self.budget)
        if not self.budget and len(self.choices) > 1:
            raise ValueError(
                f"options: {self.options} are several; give a --budget to choose between them by, or one option for every matrix"
            )
        if dropping := [option.name for option in self.choices if option.is_drop]:
            if not self.budget:
                raise ValueError(f"options: {dropping[0]} is chosen block by block; give a --budget to choose by")
            if len(dropping) == len(self.choices):
                raise ValueError(f"options: {', '.join(dropping)} alone; add int8, for instance, for the matrices that stay")
        _check_source(self.prompts, self.tokens)
        _check_engine(self.engine)
        _check_num_prompts(self.num_prompts)
        for name in ("search_prompts", "calibration_prompts", "prompt_tokens", "completion_tokens", "num_workers", *_RECOVERY):
            _at_least_one(name, getattr(self, name))

    @property
    def bounds(self) -> dict[str, float]:
        """The budget by metric; empty when there is none."""
        return parse_budget(self.budget)

    @property
    def choices(self) -> tuple[Option, ...]:
        """What a matrix may become besides being kept."""
        given = parse_options(self.options or (_SEARCHED if self.budget else _UNIFORM))
        chosen = tuple(option for option in given if option.kind != "keep")
        if not chosen:
            raise ValueError("options: keep alone compresses nothing; add int8, for instance")
        return chosen


@settings
class DivergeConfig:
    """How far one model's tokens differ from another's: the metrics of compress for any two models of one vocabulary.

    The base completes every prompt greedily, and the other model reads these texts: a token differs (a flip) where it would have
    written another one. FDT is how many tokens agree before the first flip, which is where free decoding of the two parts; KL is how far
    the distributions are apart, flips or not. Read the numeric noise first, the tokens that the base itself flips in bfloat16, beside
    other sequences, or decoding instead of reading: below it two models are the same. It takes models that Sterna did not make, too:
    another quantiser's folder, a merge, a checkpoint of last week.
    """

    models: tuple[str, ...] = ()
    """Two model folders: the base, whose greedy completions are the measure, and the other one."""
    prompts: str = ""
    """jsonl(.gz) file with `prompt` or `messages` per line."""
    tokens: str = ""
    """Tokens folder (from tokenize): prompts are then the beginnings of its held-out documents. Give this or --prompts."""
    num_prompts: int = 64
    """Prompts to judge on, drawn by --seed."""
    prompt_tokens: int = 64
    """Length in tokens of the prompts cut from held-out documents; prompts from a file are used whole."""
    completion_tokens: int = 64
    """Length in tokens of the base's greedy completions."""
    seed: int = 0
    """Draws the prompts and the bootstrap."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """The judging engine's settings (threads, memory for KV); its number type is the judging's own business."""

    def __post_init__(self) -> None:
        if len(self.models) != 2:
            raise ValueError(f"models: give two folders, the base and the other one, not {len(self.models)}")
        _check_source(self.prompts, self.tokens)
        _check_engine(self.engine)
        _check_num_prompts(self.num_prompts)
        for name in ("prompt_tokens", "completion_tokens"):
            _at_least_one(name, getattr(self, name))


def _check_source(prompts: str, tokens: str) -> None:
    if bool(prompts) == bool(tokens):
        raise ValueError("prompts: give either --prompts FILE.jsonl or --tokens FOLDER, and not both, to judge on")


def _check_engine(engine: EngineConfig) -> None:
    if engine.kernels == "native":
        raise ValueError("engine.kernels: native kernels run bfloat16 only, and the judging needs float32 too; use auto or torch")


def _check_num_prompts(value: int) -> None:
    if value < 2:
        raise ValueError(f"num_prompts: must be at least 2, not {value}: a bound on other prompts comes of how these differ")


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}: must be at least 1, not {value}")
