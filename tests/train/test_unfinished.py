from __future__ import annotations

from pathlib import Path

import pytest

from cluster.artifact import publish
from tests.train.test_checkpoint import Row, save, state
from train.config import PretrainConfig
from train.unfinished import refuse_to_lose


def killed(output: Path, config: PretrainConfig, step: int) -> None:
    """A run that was broken off after its checkpoint of `step`."""
    try:
        with publish(str(output), stage="pretrain", inputs={"plan": "p"}, config=config) as draft:
            if step:
                save(draft.dir / "checkpoints", Row(1), state(step))
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert not output.exists()


def test_checkpoints_of_a_run_with_other_settings_are_not_thrown_away(tmp_path: Path):
    output = tmp_path / "base"
    config, other = (PretrainConfig(plan="p", output=str(output), seed=seed) for seed in (0, 1))
    refuse_to_lose(str(output), stage="pretrain", inputs={"plan": "p"}, config=config)
    killed(output, config, step=5)
    refuse_to_lose(str(output), stage="pretrain", inputs={"plan": "p"}, config=config)
    for changed, inputs in ((other, {"plan": "p"}), (config, {"plan": "another"})):
        with pytest.raises(ValueError, match=r"base\.partial: holds an unfinished run .* at step 5; give those again") as caught:
            refuse_to_lose(str(output), stage="pretrain", inputs=inputs, config=changed)
        assert "\n" not in str(caught.value)
    (tmp_path / "link").symlink_to(output)
    with pytest.raises(ValueError, match=r"base\.partial: holds"):
        refuse_to_lose(str(tmp_path / "link"), stage="pretrain", inputs={"plan": "p"}, config=other)


def test_what_has_no_checkpoint_yet_may_go(tmp_path: Path):
    output = tmp_path / "base"
    config, other = (PretrainConfig(plan="p", output=str(output), seed=seed) for seed in (0, 1))
    killed(output, config, step=0)
    refuse_to_lose(str(output), stage="pretrain", inputs={"plan": "p"}, config=other)
    (tmp_path / "base.partial" / ".sterna-partial.json").write_text("{")
    refuse_to_lose(str(output), stage="pretrain", inputs={"plan": "p"}, config=other)
