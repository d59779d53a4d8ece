from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from train.state import Record, State


def record(state: State, loss: float = 1.0) -> Record:
    return Record(state.step + 1, loss, 10, 2.0, 1e-3, 1.0, state.window)


@given(st.lists(st.integers(0, 5), max_size=40))
def test_every_window_is_a_steps_or_passed_over_and_never_both(undone: list[int]):
    """0 is a step that holds; n > 0 a spike, after which up to n - 1 steps before it are undone, too."""
    state = State()
    for consumed, back in enumerate(undone, start=1):
        spiked = record(state)
        assert spiked.window == consumed - 1
        state = state.without(spiked, max(0, state.step - (back - 1)), "spike") if back else state.after(spiked)
        assert [r.step for r in state.records] == list(range(1, state.step + 1))
        windows = [r.window for r in state.records] + [w for skip in state.skips for w in range(skip.first, skip.last + 1)]
        assert sorted(windows) == list(range(consumed))
        assert state.window == consumed
        assert State.from_json(state.to_json()) == state


def test_figures_of_a_state():
    records = [Record(i + 1, loss, tokens, 2.0, 1e-3, 1.0) for i, (loss, tokens) in enumerate([(9.0, 10), (3.0, 10), (1.0, 30)])]
    state = State(3, records)
    assert state.final_loss() == 1.0
    assert state.tokens_per_second() == 10.0
