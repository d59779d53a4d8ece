"""Sequence parallelism: what a query may see. Its steps against one process's are in test_layouts.py."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from train.parallel.sequence import _allowed


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.none() | st.integers(1, 6))
def test_a_query_sees_its_own_document_up_to_itself_within_the_window(lengths, window):
    positions = torch.tensor([[place for length in lengths for place in range(length)]])
    document = [index for index, length in enumerate(lengths) for _ in range(length)]
    allowed = _allowed(positions, window)
    assert allowed.shape == (1, 1, len(document), len(document))
    for query, row in enumerate(allowed[0, 0].tolist()):
        for key, may in enumerate(row):
            near = window is None or query - key < window
            assert may == (key <= query and near and document[key] == document[query])
