"""Whole numbers, each once: by sorting, and not even that where they come in order, as labels mostly do."""

from __future__ import annotations

import numpy as np

__all__ = ["distinct"]


def distinct(numbers: np.ndarray) -> np.ndarray:
    """Return the numbers in an array, each once, in order.

    As ``np.unique``, which puts them into a hash table since NumPy 2.3: half of the trace of a million channels.

    Example:
        >>> distinct(np.array([[3, 1], [3, 7]])).tolist(), distinct(np.array([1, 1, 2])).tolist()
        ([1, 3, 7], [1, 2])
    """
    flat = numbers.ravel()
    if (flat[1:] < flat[:-1]).any():
        flat = np.sort(flat)
    return flat[np.concatenate([[True], flat[1:] != flat[:-1]])] if len(flat) else flat
