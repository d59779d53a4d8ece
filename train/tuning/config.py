"""Settings of `sterna tune`, and what is known of each way of tuning before a model is opened.

Promise: plain frozen data, checked when it is made. Sources: LoRA (arXiv 2106.09685), DoRA (2402.09353), rsLoRA (2312.03732),
(IA)³ (2205.05638), AdaLoRA (2303.10512), prompt tuning (2104.08691), prefix tuning (2101.00190), P-tuning (2103.10385),
BitFit (2106.10199), bottleneck adapters (1902.00751); DPO (2305.18290).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cluster.settings import settings
from train.recipe import Precision, at_least

__all__ = ["TRAITS", "MethodName", "Traits", "TuneConfig"]

MethodName = Literal["full", "lora", "dora", "rslora", "ia3", "adalora", "prompt", "prefix", "p_tuning", "bitfit", "adapter"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Traits:
    """What a method is, whatever the model."""

    learning_rate: float
    """Peak learning rate that suits it on a model of width 256; benchmarks/tuning.py tells how it was found."""
    matrices: bool = True
    """Whether what is trained are matrices, whose rate falls with the model's width."""
    merges: bool = True
    """Whether the result is a model of the same architecture, which needs nothing beside it."""
    ahead: bool = False
    """Whether something stands ahead of the text, which takes room in the context and is read before each conversation anew."""
    alone: bool = True
    """Whether what was trained can be written alone, without the model."""


TRAITS: dict[str, Traits] = {
    "full": Traits(learning_rate=6e-4, alone=False),
    "lora": Traits(learning_rate=4e-3),
    "dora": Traits(learning_rate=4e-3),
    "rslora": Traits(learning_rate=2e-3),
    "ia3": Traits(learning_rate=4e-2, matrices=False),
    "adalora": Traits(learning_rate=1e-2),
    "prompt": Traits(learning_rate=3e-2, matrices=False, merges=False, ahead=True),
    "prefix": Traits(learning_rate=2e-2, matrices=False, merges=False, ahead=True),
    "p_tuning": Traits(learning_rate=2e-3, merges=False, ahead=True),
    "bitfit": Traits(learning_rate=1e-2, matrices=False),
    "adapter": Traits(learning_rate=4e-3, merges=False),
}
_ON_EMBEDDINGS = ("lora", "rslora")
_WIDTH, _WIDTH_POWER = 256, 0.78  # LoRA's best rates over Llama's sizes (Schulman et al., LoRA Without Regret, 2025)
_PREFERENCES_SHARE = 0.1  # of a method's learning rate, where preferences are learnt: a policy that must stay near its reference


@settings
class TuneConfig:
    """`sterna tune`: a model and conversations, or preferences between answers -> a tuned model, or an adapter to it."""

    model: str
    """Model folder: from pretrain, or any Hugging Face folder of a causal model with its tokenizer."""
    data: tuple[str, ...]
    """Jsonl files (each line has `messages`; for preferences `chosen` and `rejected`), or corpus folders (from `sterna curate`),
    whose functions become pairs."""
    output: str
    """Folder to write the tuned model (or the adapter) to."""
    method: MethodName = "lora"
    """What is trained: all weights (full), low-rank updates (lora, dora, rslora, adalora), scales (ia3), virtual tokens (prompt,
    p_tuning) or keys and values (prefix) ahead of the text, biases (bitfit), or small layers after attention and MLP (adapter)."""
    objective: Literal["answers", "preferences"] = "answers"
    """What is learnt: the assistant's answers, or to prefer the chosen answer to the rejected one (DPO)."""
    beta: float = 0.1
    """How closely preferences keep to the model as it was; larger is closer."""
    rank: int = 32
    """Rank of the update of each matrix (AdaLoRA: on average, after pruning), or width of an adapter."""
    alpha: float = 64.0
    """Scale of a low-rank update: it is multiplied by alpha / rank (rslora: alpha / √rank)."""
    dropout: float = 0.0
    """Dropout on the input of a low-rank update."""
    targets: tuple[str, ...] = ()
    """Names of the modules to adapt; by default what the method's paper adapts, for low-rank updates every linear layer (the output layer
    is a matter of its own: embeddings)."""
    embeddings: bool | None = None
    """Whether low-rank updates (lora, rslora) change the embedding and the output layer as well; by default where they are merged and no
    targets are named: served by name, an update can change the layers between alone."""
    virtual_tokens: int = 20
    """Length of the learnt prompt of prompt, prefix and p_tuning."""
    merge: bool | None = None
    """Fold the update into the weights and write a whole model, or write the adapter alone; by default whatever the method can, a model
    first."""
    steps: int | None = None
    """Optimizer steps; by default as many as `epochs` needs."""
    epochs: float = 1.0
    """Passes over the pairs, when steps is not given."""
    max_steps: int | None = None
    """Upper bound on the steps that epochs asks for."""
    global_batch: int = 16
    """Sequences per step over all workers; conversations are packed into sequences."""
    micro_batch: int = 8
    """Sequences per forward pass of a worker; a pair of answers counts as one."""
    max_length: int | None = None
    """Tokens per sequence; by default the model's context, at most 512. Longer conversations are set aside and counted."""
    max_pairs: int = 20_000
    """Conversations used at most, chosen by hash."""
    held_out: float = 0.05
    """Share of the conversations kept out of training to measure the loss before and after."""
    learning_rate: float | None = None
    """Peak learning rate; by default one that suits the method and the model's width."""
    weight_decay: float = 0.0
    """Decoupled weight decay of what is trained."""
    num_workers: int = 2
    """Training workers."""
    zero_stage: int | None = None
    """ZeRO stage 0 to 3; by default 2 where all weights are tuned, and 0 elsewhere: of a small update there is little to shard."""
    precision: Precision = "auto"
    """Arithmetic of the model: auto, bfloat16 or float32."""
    gradient_checkpointing: bool = False
    """Compute each layer again on the way back instead of keeping its activations: less memory, about a third more work."""
    checkpoint_every: int = 50
    """Steps between checkpoints."""
    seed: int = 0
    """Seed of the first weights of what is trained, and of the data order."""
    max_failures: int = 3
    """Worker failures after which the run goes on from its newest checkpoint; -1 is without limit."""

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("data: is empty; give instruction jsonl files or a corpus folder")
        for name in ("rank", "global_batch", "micro_batch", "num_workers", "checkpoint_every", "virtual_tokens"):
            at_least(getattr(self, name), 1, name)
        at_least(self.max_pairs, 2, "max_pairs")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out: is {self.held_out}; must lie between 0 and 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: is {self.dropout}; must be at least 0 and below 1")
        for name in ("alpha", "beta", "epochs", "learning_rate"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name}: is {getattr(self, name)}; must be above 0")
        if self.max_length is not None:
            at_least(self.max_length, 16, "max_length")
        self._check_method()

    def _check_method(self) -> None:
        traits = TRAITS[self.method]
        if self.merge and not traits.merges:
            raise ValueError(
                f"merge: {self.method} adds to the model what its architecture has not; leave --merge out, or choose another method"
            )
        if self.merge is False and not traits.alone:
            raise ValueError(f"merge: {self.method} changes every weight, so there is no adapter to write alone; leave --no-merge out")
        if self.method == "adalora" and self.zero_stage:
            raise ValueError(f"zero_stage: adalora prunes whole updates, which stage {self.zero_stage} does not keep; leave it out")
        if self.embeddings and self.method not in _ON_EMBEDDINGS:
            raise ValueError(f"embeddings: {self.method} does not change them; leave it out, or choose {' or '.join(_ON_EMBEDDINGS)}")
        if self.adapts_embeddings and self.zero_stage == 3:
            raise ValueError("zero_stage: 3 keeps no embedding whole to be updated; choose a lower one, or leave them be (--no-embeddings)")
        if self.method == "adalora" and self.objective == "preferences":
            raise ValueError("objective: adalora learns from answers only; take lora for preferences")

    @property
    def merged(self) -> bool:
        """Whether a whole model is written."""
        return TRAITS[self.method].merges if self.merge is None else self.merge

    @property
    def adapts_embeddings(self) -> bool:
        """Whether the embedding and the output layer have low-rank updates."""
        if self.embeddings is None:
            return self.method in _ON_EMBEDDINGS and self.merged and not self.targets
        return self.embeddings

    @property
    def sharded(self) -> int:
        """The ZeRO stage."""
        return self.zero_stage if self.zero_stage is not None else (2 if self.method == "full" else 0)

    def peak_learning_rate(self, width: int) -> float:
        """The rate asked for, or the method's own for a model of this width; a tenth of that where preferences are learnt.

        >>> config = TuneConfig(model="m", data=("d",), output="o", method="lora")
        >>> [f"{config.peak_learning_rate(width):.1e}" for width in (256, 4096)]
        ['4.0e-03', '4.6e-04']
        """
        if self.learning_rate is not None:
            return self.learning_rate
        traits = TRAITS[self.method]
        narrower = (_WIDTH / width) ** _WIDTH_POWER if traits.matrices else 1.0
        return traits.learning_rate * narrower * (_PREFERENCES_SHARE if self.objective == "preferences" else 1.0)
