"""Each number once, whatever the order and the shape they come in."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lightning_taylor.trace.distinct import distinct


@given(st.lists(st.integers(-5, 50)), st.booleans(), st.sampled_from([1, 2, 3]))
def test_numbers_are_those_of_numpy(numbers: list[int], ordered: bool, rows: int) -> None:
    values = np.array((sorted(numbers) if ordered else numbers) * rows, dtype=np.int64).reshape(rows, -1)
    before = values.copy()
    assert np.array_equal(distinct(values), np.unique(values))
    assert np.array_equal(values, before)
