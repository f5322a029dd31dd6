"""Bringing the scores of different groups to one scale, before the global ranking.

Shape legend: C = channels of a group.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

__all__ = ["Normalization", "normalize"]

Normalization = Literal["l2", "l1", "minmax", "none"]
"""How the scores of one group are scaled."""


def normalize(scores: Mapping[str, Tensor], how: Normalization = "l2") -> dict[str, Tensor]:
    r"""Scale the scores of each group by themselves, so that groups can be compared.

    .. math::  \hat\Theta_c = \frac{\Theta_c}{\sqrt{\sum_j \Theta_j^2}}

    for "l2"; "l1" divides by :math:`\sum_j |\Theta_j|`, "minmax" maps the least score to 0 and the greatest to 1,
    "none" leaves them as they are. A group whose scores are all zero (or, for "minmax", all equal) becomes zero.

    Units: without units, but for "none". Any common factor of a group's scores cancels.

    Args:
        scores: group name -> shape ``(C,)``, any float dtype; read only.
        how: "l2" (the paper), "l1", "minmax" or "none".

    Returns:
        Group name -> new tensor of the same shape and dtype, in the same order.

    Raises:
        ValueError: for an unknown ``how``.

    Source: Molchanov et al. 2017, section 2.3; "l1" and "minmax" from its Table 3.

    Example:
        >>> normalize({"conv1": torch.tensor([3.0, 4.0]), "conv2": torch.zeros(2)})
        {'conv1': tensor([0.6000, 0.8000]), 'conv2': tensor([0., 0.])}
    """
    if how not in get_args(Normalization):
        raise ValueError(f"normalization must be one of {', '.join(get_args(Normalization))}, got {how!r}")
    return {name: _normalize(score_C, how) for name, score_C in scores.items()}


def _normalize(score_C: Tensor, how: Normalization) -> Tensor:
    if how == "none" or not score_C.numel():
        return score_C.clone()
    if how == "minmax":
        lifted_C = score_C - score_C.min()
        return _divide(lifted_C, lifted_C.max())
    # Scaled by the greatest first: the square of a score of 1e-30 is zero in float32.
    unit_C = _divide(score_C, score_C.abs().max())
    return _divide(unit_C, torch.linalg.vector_norm(unit_C, 2 if how == "l2" else 1))


def _divide(score_C: Tensor, by: Tensor) -> Tensor:
    """The quotient, or zeros where it would be 0/0."""
    return torch.where(by == 0, torch.zeros_like(score_C), score_C / by)
