"""Ways of tuning side by side: the same model, conversations, steps and arithmetic; what each trains, weighs, costs and learns.

Promise: one table from `runs/tuning.json`; losses are of held-out answers, in nats per token; speeds are medians of steps that take
turns in one process, so that a busy moment hits all alike; full tuning and LoRA take the best learning rate of a sweep on the training
data's own tail, by runs as long as the final ones, the others the product's own. A finished part is not run again, so an interrupted run
goes on. Price: about 40 minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.tuning_table import told
from train.conversations import encode, encode_pairs, split
from train.corpus import Sequences
from train.loop import held_out_loss, run
from train.model_folder import load_model
from train.plain import PlainStepper
from train.questions import Question, accuracy, answer_all
from train.recipe import Recipe
from train.state import State
from train.tuning.config import TRAITS, TuneConfig
from train.tuning.methods import METHODS, attach, objective
from train.tuning.preferences import Pairs
from train.tuning.reference import likelihoods

LENGTH, MICRO, SEED = 256, 4, 0
STEPS, PREFERENCE_STEPS = 100, 50
BATCH = 8
PARTS = ["sweep", "train", "preferences", "speed"]
SWEEP = {"full": (9e-4, 2e-3, 4e-3), "lora": (4e-3, 6e-3, 12e-3), "lora, rank 64": (3e-3, 5e-3)}
"""Peak learning rates that those who are compared with each other choose from; the others take the product's own."""
ROWS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {},
    "lora, rank 64": {"method": "lora", "rank": 64, "alpha": 128.0},
    "lora by name": {"method": "lora", "merge": False},
    **{name: {} for name in METHODS if name not in ("full", "lora")},
}
"""Row of the table -> what it sets besides the method of its name."""
_ASKED, _ANSWERED = "# {{ m['content'] }}\n", "{{ m['content'] }}<|endoftext|>"
CHAT = "{% for m in messages %}{% if m['role'] == 'assistant' %}" + _ANSWERED + "{% else %}" + _ASKED + "{% endif %}{% endfor %}"


def main() -> None:
    """Fill in what is missing of the figures, and print the table."""
    options = _options()
    place = Path(options.json)
    place.parent.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = json.loads(place.read_text()) if place.exists() and not options.fresh else {}
    bench = Bench(Path(options.model), Path(options.data))
    for name in options.methods:
        for rate in SWEEP.get(name, ()) if "sweep" in options.parts else ():
            if f"{rate:.2g}" not in figures.get("sweep", {}).get(name, {}):
                _keep(place, ("sweep", name, f"{rate:.2g}"), bench.swept(name, rate))
        if "train" in options.parts and name not in figures.get("methods", {}):
            swept = json.loads(place.read_text()).get("sweep", {}).get(name, {}) if place.exists() else {}
            best = min(swept, key=swept.__getitem__, default=f"{_own_rate(name)}")
            _keep(place, ("methods", name), bench.trained(name, float(best)))
    if "preferences" in options.parts:
        _keep(place, ("preferences",), bench.preferred())
    if "speed" in options.parts:
        _keep(place, ("speed",), bench.speeds(options.methods))
    print(told(json.loads(place.read_text())))


class Bench:
    """The model and the data that every method gets."""

    def __init__(self, model: Path, data: Path) -> None:
        from transformers import AutoTokenizer

        torch.set_num_threads(1)
        self.model, self._scratch = model, Path(tempfile.mkdtemp(prefix="sterna-bench-"))
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.tokenizer.chat_template = CHAT
        self.train, self.held_out = split(_conversations(data / "code/mbpp.jsonl"), 10_000, 0.1)

    def config(self, row: str) -> TuneConfig:
        """The product's own settings, but for where things are."""
        fields = {"method": row, "model": str(self.model), "data": ("mbpp",), "output": "unused", "seed": SEED}
        return TuneConfig(**fields | ROWS[row])

    def sources(self, *, swept: bool = False) -> tuple[Sequences, Sequences]:
        """(training, held-out) sequences; for the sweep, a tenth of the training data is held out."""
        cut = len(self.train) * 9 // 10
        parts = (self.train[:cut], self.train[cut:]) if swept else (self.train, self.held_out)
        source, held_out = (encode(part, self.tokenizer, LENGTH)[0] for part in parts)
        assert source is not None
        assert held_out is not None
        return source, held_out

    def recipe(self, steps: int, rate: float) -> Recipe:
        """The same for every method but for the rate."""
        return Recipe(
            steps=steps, global_batch=BATCH, micro_batch=MICRO, sequence_length=LENGTH, learning_rate=rate, weight_decay=0.0, zero_stage=0,
            num_workers=1, precision="float32", warmup_steps=max(1, steps * 3 // 100), seed=SEED, guard=0.0,
        )  # fmt: skip

    def asked(self, method: str, steps: int) -> tuple[torch.nn.Module, Any]:
        """(objective, the model with what the method trains)."""
        tuned = attach(load_model(self.model, torch.float32), self.config(method), steps)
        return objective(tuned, self.config(method), steps), tuned

    def swept(self, method: str, rate: float) -> float:
        """Loss on the training data's tail after as long a run as the final one, at `rate`, without that tail."""
        source, held_out = self.sources(swept=True)
        stepper = PlainStepper(self.asked(method, STEPS)[0], self.recipe(STEPS, rate))
        return _finite(_loss_after(stepper, source, held_out, self.recipe(STEPS, rate)))

    def trained(self, method: str, rate: float) -> dict[str, Any]:
        """The long run's figures."""
        source, held_out = self.sources()
        recipe = self.recipe(STEPS, rate)
        asked, tuned = self.asked(method, STEPS)
        stepper = PlainStepper(asked, recipe)
        began, before = time.monotonic(), held_out_loss(stepper, held_out, MICRO)
        after = _loss_after(stepper, source, held_out, recipe)
        trainable = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
        whole = sum(p.numel() for p in load_model(self.model, torch.float32).parameters())
        figures = {"before": before, "after": after, "trainable": trainable / whole, "rate": recipe.learning_rate, "steps": recipe.steps}
        return figures | {"seconds": time.monotonic() - began, **self._written(method, tuned)}

    def _written(self, row: str, tuned: Any) -> dict[str, Any]:
        """Bytes of the artifact, and how far the merged model's logits are from the tuned one's."""
        method = self.config(row).method
        rows = self.sources()[1].batch(np.arange(8)).input_ids
        figures: dict[str, Any] = {}
        with torch.no_grad():
            mine = tuned.eval()(input_ids=rows).logits
        if METHODS[method].write is not None:
            METHODS[method].write(tuned, self._scratch / method)  # type: ignore[misc]
            figures["bytes"] = (self._scratch / method / "adapter_model.safetensors").stat().st_size
        else:
            figures["bytes"] = 4 * sum(p.numel() for p in tuned.parameters())
        if METHODS[method].merge is not None:
            with torch.no_grad():
                merged = METHODS[method].merge(tuned)(input_ids=rows).logits  # type: ignore[misc]
            figures["merged_difference"] = float((merged - mine).abs().max())
        shutil.rmtree(self._scratch / method, ignore_errors=True)
        return figures

    def preferred(self) -> dict[str, Any]:
        """DPO: to prefer the solution of the problem to the next problem's; loss and accuracy on held-out problems."""
        config = TuneConfig(model=str(self.model), data=("mbpp",), output="unused", objective="preferences", seed=SEED)
        model = load_model(self.model, torch.float32).eval()
        train, held_out = (self._pairs(part, model) for part in (self.train, self.held_out))
        recipe = self.recipe(PREFERENCE_STEPS, config.peak_learning_rate(model.config.hidden_size))
        tuned = attach(model, config, recipe.steps)
        stepper = PlainStepper(objective(tuned, config, recipe.steps), recipe)
        figures: dict[str, Any] = {"before": held_out_loss(stepper, held_out, MICRO), "right_before": self._right(tuned)}
        run(stepper, train, recipe, state=State())
        return figures | {"after": held_out_loss(stepper, held_out, MICRO), "right_after": self._right(tuned), "steps": recipe.steps}

    def _pairs(self, part: list[Any], model: Any) -> Pairs:
        others = [*part[1:], part[0]]
        pairs = [(right, [right[0], other[1]]) for right, other in zip(part, others, strict=True)]
        rows, _ = encode_pairs(pairs, self.tokenizer, LENGTH)
        assert rows is not None
        return Pairs(rows, likelihoods(model, rows, np.arange(len(rows))))

    def _right(self, model: Any) -> float:
        others = [*self.held_out[1:], self.held_out[0]]
        answers = [(right[1]["content"], other[1]["content"]) for right, other in zip(self.held_out, others, strict=True)]
        questions = [Question(right[:1], both, 0) for right, both in zip(self.held_out, answers, strict=True)]
        return accuracy(answer_all(model.eval(), self.tokenizer, questions, max_length=2 * LENGTH, batch_tokens=4096)).per_byte

    def speeds(self, methods: list[str], rounds: int = 5) -> dict[str, float]:
        """Answer tokens per second: the median over steps that the methods take in turn."""
        running = {}
        for method in methods:
            source = self.sources()[0]
            recipe = self.recipe(10, 1e-5)
            running[method] = (PlainStepper(self.asked(method, 10)[0], recipe), source, recipe)
        seen: dict[str, list[float]] = {method: [] for method in methods}
        for number in range(rounds + 1):
            for method, (stepper, source, recipe) in running.items():
                rows = np.arange(number * recipe.global_batch, (number + 1) * recipe.global_batch) % len(source)
                batches = [source.batch(part) for part in np.split(rows, len(rows) // MICRO)]
                labels, began = source.num_labels(rows), time.perf_counter()
                stepper.step(batches, labels, 1e-5)
                seen[method].append(labels / (time.perf_counter() - began))
        return {method: statistics.median(found[1:]) for method, found in seen.items()}


def _own_rate(row: str) -> float:
    return TRAITS[ROWS[row].get("method", row)].learning_rate


def _loss_after(stepper: PlainStepper, source: Any, held_out: Any, recipe: Recipe) -> float:
    try:
        run(stepper, source, recipe, state=State())
    except ValueError:  # a loss that is no number: the rate is too high
        return math.inf
    return held_out_loss(stepper, held_out, MICRO)


def _finite(loss: float) -> float:
    return loss if math.isfinite(loss) else 99.0


def _conversations(file: Path) -> list[list[dict[str, str]]]:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    turns = [(row["text"], row["code"].replace("\r\n", "\n").replace("\t", "    ")) for row in rows]
    return [[{"role": "user", "content": asked}, {"role": "assistant", "content": code}] for asked, code in turns]


def _keep(place: Path, path: tuple[str, ...], value: Any) -> None:
    """Put one figure into the file, which another process may have written to in the meantime."""
    figures = json.loads(place.read_text()) if place.exists() else {}
    inner = figures
    for key in path[:-1]:
        inner = inner.setdefault(key, {})
    inner[path[-1]] = value
    scratch = place.with_suffix(".partial")
    scratch.write_text(json.dumps(figures, indent=1))
    scratch.replace(place)
    print(*path, value, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="../shared/models/tiny-code", help="model folder")
    parser.add_argument("--data", default="../shared/data", help="folder of the data (code/mbpp.jsonl)")
    parser.add_argument("--json", default="runs/tuning.json", help="where the figures are kept")
    parser.add_argument("--methods", nargs="+", choices=list(ROWS), default=list(ROWS), help="which to run")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to run")
    parser.add_argument("--fresh", action="store_true", help="forget what is there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
