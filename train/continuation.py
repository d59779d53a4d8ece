"""Going on with a model that is there, or learning from it: a folder of pretrain's, or any Hugging Face folder of a causal model.

Promise: a model that does not fit the tokens or the recipe is refused in one line before any machine is asked for.
Price: reading its configuration and its tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cluster.artifact import Artifact
from train.model_folder import is_quantised, load_model, load_tokenizer, open_model
from train.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from train.compress.distil_loss import DistilLoss

__all__ = ["check_base", "check_teacher", "continued", "taught"]


def check_base(uri: str, recipe: Recipe, tokens: Artifact) -> str:
    """The digest of the model folder at `uri`.

    Raises ValueError when the tokens were made with another vocabulary, or the sequences are longer than the model's positions reach.
    """
    from transformers import AutoConfig

    path, digest = open_model(uri)
    if is_quantised(path):
        raise ValueError(f"{uri}: its weights are quantised; go on with the model that it was made from")
    if load_tokenizer(path).get_vocab() != load_tokenizer(tokens.local() / "tokenizer").get_vocab():
        raise ValueError(f"{tokens.uri}: was made with another vocabulary than {uri}; run `sterna tokenize --tokenizer {uri}`")
    if recipe.sequence_length != (known := tokens.manifest.metrics["sequence_length"]):
        raise ValueError(f"{tokens.uri}: sequences of {known} tokens, [train] says {recipe.sequence_length}; make them agree")
    reach = getattr(AutoConfig.from_pretrained(path), "max_position_embeddings", None)
    if reach is not None and recipe.sequence_length > reach:
        raise ValueError(f"{uri}: its positions reach {reach} tokens, the sequences are {recipe.sequence_length} long; tokenize to fit")
    return digest


def continued(uri: str) -> PreTrainedModel:
    """The model to go on with, in float32."""
    import torch

    return load_model(open_model(uri)[0], torch.float32)


def check_teacher(uri: str, student: dict[str, Any], recipe: Recipe, tokens: Artifact) -> str:
    """The digest of the model folder at `uri`, which a model of the plan's table `student` is to learn from.

    Raises ValueError as `check_base` does, when the two have not the same number of logits, and for a recipe that splits the model.
    """
    from transformers import AutoConfig

    if recipe.workers_per_replica > 1:
        raise ValueError(
            "teacher: a model that is split over workers cannot learn from another yet; set tensor, pipeline and sequence to 1"
        )
    digest = check_base(uri, recipe, tokens)
    here = student["vocab_size"] if "from" not in student else AutoConfig.from_pretrained(open_model(student["from"])[0]).vocab_size
    if here != (there := AutoConfig.from_pretrained(open_model(uri)[0]).vocab_size):
        raise ValueError(f"{uri}: has {there} logits, the student {here}; give both one vocabulary")
    return digest


def taught(build: Callable[[], PreTrainedModel], teacher: str) -> DistilLoss:
    """The model that `build` makes, with the teacher beside it."""
    from train.compress.distil_loss import DistilLoss

    return DistilLoss(build(), continued(teacher))
