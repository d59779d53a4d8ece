"""Fixtures every package shares: the data beside the project, one Ray for the session, a tiny model made on the spot."""

from __future__ import annotations

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
if "PYTEST_XDIST_WORKER" in os.environ:  # two processes of two threads each would wait for each other's cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# A busy machine is not a failure, and CI tries the same examples each time.
hypothesis.settings.register_profile("sterna", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("sterna")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Who runs what under `-n 2`; asked only where pytest-xdist is at work."""
    from tests.lanes import Lanes

    return Lanes(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A shared machine stalls, and what waits for a process or measures a speed may fail of it: a test is tried once more, and named.

    What is wrong fails twice. The slow ones are proofs, get a machine to themselves, and are tried once.
    """
    for item in items:
        if not item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Why tests were tried once more: a test that passes at the second try has still said something."""
    for report in terminalreporter.stats.get("rerun", []):
        terminalreporter.section(f"tried once more: {report.nodeid}", sep="-")
        terminalreporter.line(report.longreprtext[-4000:])


_BESIDE = Path(__file__).resolve().parents[2] / "shared"


def _existing(variable: str, default: Path) -> Path:
    folder = Path(os.environ.get(variable, default))
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: set {variable} to run this test on real data")
    return folder


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real text, code, traces: `STERNA_DATA`, else ../shared/data."""
    return _existing("STERNA_DATA", _BESIDE / "data")


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """Small trained models: `STERNA_MODELS`, else ../shared/models."""
    return _existing("STERNA_MODELS", _BESIDE / "models")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for the whole session (4 logical CPUs)."""
    import ray

    from cluster.runtime import attached

    started_here = not ray.is_initialized()
    if started_here:
        os.environ["RAY_ADDRESS"] = "local"  # never join a cluster that happens to run on this machine
    with attached(num_cpus=4):
        yield


@pytest.fixture
def s3_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """An S3 server of our own over HTTP: what a process needs in its environment to reach it, set in this one."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    values = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    yield values
    server.stop()


TINY_TEXT = [
    "def add(left, right):\n    return left + right\n",
    "The tern flies from pole to pole and back again, every year of its life.",
    "for index in range(10):\n    print(index)\n",
    "Ünïcode: naïve café, 日本語, emoji 🐦 and a tab\there.",
]

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|endoftext|>{% else %}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def write_tiny_tokenizer(folder: Path, vocab_size: int = 400) -> None:
    """A byte-level BPE trained on four lines, in the Hugging Face files of a model folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|user|>", "<|assistant|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TINY_TEXT * 20, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|pad|>",
        "model_max_length": 512,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weights Llama of two layers (GQA, tied embeddings, float32) with its tokenizer, as a Hugging Face folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-llama")
    write_tiny_tokenizer(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=3,
        initializer_range=0.2,  # wide enough that greedy continuations vary
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_tiny_adapter(folder: Path, model: Path, seed: int = 0) -> Path:
    """A LoRA adapter for a model folder, in peft's files: random updates of every query projection, large enough to change tokens."""
    import torch
    from safetensors.torch import save_file

    shape = json.loads((model / "config.json").read_text())
    hidden = shape["hidden_size"]
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(shape["num_hidden_layers"]):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora"
        tensors[f"{name}_A.weight"] = torch.randn(4, hidden, generator=generator)
        tensors[f"{name}_B.weight"] = torch.randn(hidden, 4, generator=generator)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def tiny_adapter_dir(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A LoRA adapter for the tiny model."""
    return write_tiny_adapter(tmp_path_factory.mktemp("tiny-adapter"), tiny_model_dir)
