"""The trial of a service: real HTTP streams against a real deployment, with drafts and without."""

import json

import pytest

from pipelines.config import TrialConfig
from pipelines.trial import read_prompts, trial
from serve.engine.config import EngineConfig


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("", "holds no prompts"),
        ("{}\n", "p.jsonl:1: not a JSON object"),
        ('{"prompt": "a"}\n[1]\n', "p.jsonl:2"),
        ("{broken\n", "p.jsonl:1"),
        (b'{"prompt": "a"}\n{"prompt": "\xff"}\n', "p.jsonl:2"),
        ('{"prompt": ' + "[" * 200_000 + "\n", "p.jsonl:1"),
    ],
)
def test_a_bad_prompt_file_is_named(tmp_path, lines, said):
    path = tmp_path / "p.jsonl"
    path.write_bytes(lines if isinstance(lines, bytes) else lines.encode())
    with pytest.raises(ValueError, match=said):
        read_prompts(str(path), 10)


def test_only_a_line_feed_ends_a_line(tmp_path):
    """JSON holds the other characters that Unicode calls line boundaries as they are."""
    prompts = ["one\u2028two", "a\x85b", "c"]
    path = tmp_path / "p.jsonl"
    path.write_bytes("\r\n".join(json.dumps({"prompt": p}, ensure_ascii=False) for p in prompts).encode())
    assert read_prompts(str(path), 10) == prompts
    assert read_prompts(str(path), 2) == prompts[:2]


def test_a_missing_prompt_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_prompts(str(tmp_path / "none.jsonl"), 10)


def test_a_service_is_measured_with_and_without_drafts(tmp_path, tiny_model_dir, ray_session):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"def add_{n}(left, right):\n"}) + "\n" for n in range(3)))
    config = TrialConfig(
        model=str(tiny_model_dir), prompts=str(prompts), output=str(tmp_path / "trial"), concurrency=(2,), num_requests=3, max_tokens=20,
        engine=EngineConfig(dtype="float64", num_threads=1),
    )  # fmt: skip
    result = trial(config)
    rows = {row["drafts"]: row for row in result.manifest.metrics["rows"]}
    assert set(rows) == {"ngram", "off"}
    assert all(row["tokens per second"] > 0 for row in rows.values())
    assert result.manifest.metrics["agreement"] == 1.0, "in float64 drafts change nothing"
    streams = [json.loads(line) for line in (tmp_path / "trial" / "streams.jsonl").read_text().splitlines()]
    assert len(streams) == 6
    assert all(0 < stream["first_s"] <= stream["total_s"] for stream in streams)
    assert max(stream["tokens"] for stream in streams) == 20
    again = trial(config)
    assert again.manifest.digest == result.manifest.digest
