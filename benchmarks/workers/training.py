"""One contestant of benchmarks/train.py in a process of its own: the same model, batches and optimizer, and somebody's loop.

It takes turns: after a step it prints a line and waits for one, so that whoever gives the turns can time step against step on a machine
that others use, too. At the end a line of JSON: peak memory of the process, the losses. In a process group (WORLD_SIZE above 1) the
contestant is Sterna's, sharded by `zero_stage`, and worker 0 takes the turns.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from train.architectures import make_config, make_model
from train.corpus import IGNORED, Cursor, Sequences
from train.plan.shapes import ModelShape
from train.recipe import Recipe
from train.zero import ADAM_BETAS

__all__ = ["CONTESTANTS", "main", "sequences_of", "turn"]

SEED = 0


def sequences_of(recipe: Recipe, vocab_size: int) -> Sequences:
    """Sequences packed of four documents each, of tokens by Zipf's law: speed does not ask what they mean."""
    rng = np.random.default_rng(SEED)
    count, length = recipe.global_batch * recipe.steps, recipe.sequence_length
    tokens = np.minimum(rng.zipf(1.3, (count, length)), vocab_size - 1).astype(np.uint16)
    segments = np.broadcast_to(np.arange(length) // (length // 4) + 1, (count, length)).astype(np.uint16)
    return Sequences([tokens], [segments])


def turn() -> None:
    """Say that a step is done, and wait to be given the next."""
    if os.environ.get("RANK", "0") == "0":
        print(flush=True)
        sys.stdin.readline()


def bare(model: PreTrainedModel, recipe: Recipe, source: Sequences) -> list[float]:
    """The loop that everybody writes first: whole logits, cross-entropy, fused AdamW."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=ADAM_BETAS, weight_decay=recipe.weight_decay, fused=True
    )
    model.train()
    losses, cursor = [], Cursor(SEED, recipe.global_batch, len(source))
    for _ in range(recipe.steps):
        total = 0.0
        batches = [source.batch(part) for part in np.split(cursor.indices(), recipe.micro_steps)]
        for batch in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                logits = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED)
            (loss / recipe.micro_steps).backward()
            total += float(loss.detach()) / recipe.micro_steps
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        cursor = cursor.next()
        losses.append(total)
        turn()
    return losses


def trainer(model: PreTrainedModel, recipe: Recipe, source: Sequences) -> list[float]:
    """transformers' Trainer, told to do nothing but train; it averages each micro-batch by itself and tells no losses here."""
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.utils import logging as transformers_log

    transformers_log.set_verbosity_error()
    order = np.concatenate([Cursor(SEED, recipe.global_batch, len(source), step).indices() for step in range(recipe.steps)])

    class Turns(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            turn()

    class Ordered(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(order)

        def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
            batch = source.batch(order[number : number + 1])
            labels = torch.cat([torch.full((1, 1), IGNORED), batch.labels[:, :-1]], dim=1)  # the model shifts them itself
            return {"input_ids": batch.input_ids[0], "labels": labels[0], "position_ids": batch.position_ids[0]}

    class InOrder(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch, max_steps=recipe.steps, per_device_train_batch_size=recipe.micro_batch,
            gradient_accumulation_steps=recipe.micro_steps, learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay,
            adam_beta1=ADAM_BETAS[0], adam_beta2=ADAM_BETAS[1], max_grad_norm=recipe.clip, optim="adamw_torch_fused",
            lr_scheduler_type="constant", bf16=recipe.precision == "bfloat16", use_cpu=True, logging_strategy="no", save_strategy="no",
            report_to=[], disable_tqdm=True, dataloader_num_workers=0, dataloader_pin_memory=False,
        )  # fmt: skip
        InOrder(model=model, args=arguments, train_dataset=Ordered(), callbacks=[Turns()]).train()
    return []


def sterna(model: PreTrainedModel, recipe: Recipe, source: Sequences) -> list[float]:
    """Our loop, with the stepper that the recipe asks for."""
    from train.loop import run
    from train.state import State
    from train.steppers import make_stepper

    state = run(make_stepper(model, recipe), source, recipe, state=State(), report=lambda _: turn())
    return [r.loss for r in state.records]


def checkpointed(model: PreTrainedModel, recipe: Recipe, source: Sequences) -> list[float]:
    """The same with a checkpoint, as a run's workers make them, every `recipe.checkpoint_every` steps."""
    from train.checkpoint import Checkpoints
    from train.loop import run
    from train.state import State
    from train.steppers import make_stepper

    stepper = make_stepper(model, recipe)
    with tempfile.TemporaryDirectory(prefix="sterna-checkpoints-") as folder:
        checkpoints = Checkpoints(folder, stepper, "benchmark")
        state = run(stepper, source, recipe, state=State(), report=lambda _: turn(), checkpoint=checkpoints.save)
        checkpoints.settle()
    return [r.loss for r in state.records]


CONTESTANTS: dict[str, Callable[[PreTrainedModel, Recipe, Sequences], list[float]]] = {
    "bare": bare,
    "trainer": trainer,
    "sterna": sterna,
    "checkpointed": checkpointed,
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contestant", choices=CONTESTANTS)
    parser.add_argument("--shape", type=json.loads, required=True)
    parser.add_argument("--recipe", type=json.loads, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        torch.distributed.init_process_group("gloo")
    shape, recipe = ModelShape.from_table(options.shape), Recipe(**options.recipe)
    model = make_model(make_config(shape), seed=SEED)
    source = sequences_of(recipe, shape.vocab_size)
    turn()
    losses = CONTESTANTS[options.contestant](model, recipe, source)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps({"losses": losses, "peak_bytes": peak * 1024}), flush=True)


if __name__ == "__main__":
    main()
