"""Do the criteria rank the channels as the oracle does? Spearman's correlation, and how sure of it one can be.

Shape legend: C = channels of a group, S = those of them that the oracle measured, B = batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef

from lightning_taylor.scores.normalize import normalize
from lightning_taylor.study.oracle import Oracle
from lightning_taylor.study.score_batches import Gathered

__all__ = ["SCOPES", "Correlations", "correlate", "layer_correlations", "scope_correlations", "spearman"]

SCOPES: tuple[str, ...] = ("per layer", "none", "l1", "l2", "minmax")
"""Within each group, on average; and over all groups at once, raw and after each normalisation of the criterion."""


def spearman(score_S: Tensor, truth_S: Tensor) -> float:
    r"""Spearman's rank correlation.

    .. math::  S = 1 - \frac{6}{N (N^2 - 1)} \sum_i d_i^2

    with d the difference of the ranks; equal values share their mean rank. A score that is the same for all channels
    ranks nothing, and counts as 0.

    Source: Molchanov et al. 2017, Eq. 10.

    Example:
        >>> round(spearman(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 3.0, 2.0, 9.0])), 4)
        0.8
    """
    if len(score_S) < 2 or bool((score_S == score_S[0]).all()) or bool((truth_S == truth_S[0]).all()):
        return 0.0
    # As ranks first: in float32 the differences of two losses may coincide.
    ranks = (values.double().unique(return_inverse=True)[1].float() for values in (score_S, truth_S))
    return float(spearman_corrcoef(*ranks))


def layer_correlations(
    scores: Mapping[str, Tensor], truth: Mapping[str, Tensor], channels: Mapping[str, Tensor]
) -> dict[str, float]:
    """Group name -> the correlation within it, of every group with at least three measured channels.

    Args:
        scores: group name -> shape ``(C,)``.
        truth: group name -> shape ``(S,)``, of the channels that were measured.
        channels: group name -> shape ``(S,)``, which these are.
    """
    found = [name for name, truth_S in truth.items() if name in scores and len(truth_S) > 2]
    return {name: spearman(scores[name][channels[name]], truth[name]) for name in found}


def scope_correlations(
    scores: Mapping[str, Tensor], truth: Mapping[str, Tensor], channels: Mapping[str, Tensor]
) -> dict[str, float]:
    """Scope -> correlation, for each of ``SCOPES``; the arguments are those of ``layer_correlations``.

    A criterion is normalised over all channels of a group, also where the oracle measured a sample only.
    """
    layers = layer_correlations(scores, truth, channels)
    names = [name for name in truth if name in scores]
    measured = torch.cat([truth[name] for name in names])
    found = {"per layer": sum(layers.values()) / max(1, len(layers))}
    for how in SCOPES[1:]:
        scaled = normalize({name: scores[name].double() for name in names}, how)  # type: ignore[arg-type]
        found[how] = spearman(torch.cat([scaled[name][channels[name]] for name in names]), measured)
    return found


@dataclass(frozen=True)
class Correlations:
    """Of one network and one set of data: criteria against the oracle.

    Attributes:
        scopes: criterion -> scope -> correlation over all batches.
        layers: criterion -> group -> correlation within it.
        resampled: criterion -> scope -> the same correlation for each resample of the batches.
        groups: how many groups the criteria have in common, and the oracle measured.
        channels: how many channels of them.
    """

    scopes: Mapping[str, Mapping[str, float]]
    layers: Mapping[str, Mapping[str, float]]
    resampled: Mapping[str, Mapping[str, list[float]]] = field(default_factory=dict)
    groups: int = 0
    channels: int = 0

    def to_plain(self) -> dict[str, Any]:
        """As nested dicts, for JSON."""
        return {name: value for name, value in vars(self).items()}


def correlate(
    oracle: Oracle, gathered: Gathered, *, signed: bool = False, resamples: int = 100, seed: int = 0
) -> Correlations:
    """Compare criteria with an oracle that was measured on the same batches.

    Args:
        oracle: what really happens.
        gathered: what the criteria saw, of the same batches in the same order.
        signed: compare with oracle-loss in place of oracle-abs.
        resamples: how often the batches are drawn anew, with replacement, for oracle and criteria alike; 0 for never.
        seed: of these draws.

    Returns:
        The correlations, over the groups that every criterion can score.

    Raises:
        ValueError: if there is no such group.
    """
    names = gathered.names
    full = {name: gathered.scores(name) for name in names}
    common = [group for group in oracle.channels if all(group in scores for scores in full.values())]
    channels = {group: oracle.channels[group] for group in common}
    if not common:
        raise ValueError(
            f"no group was measured and has a score by all of {', '.join(names)}: leave out the criterion that can "
            "score the fewest (its scorer's `unscorable` says why)"
        )

    def truth(weight_B: Tensor | None = None) -> dict[str, Tensor]:
        changes = oracle.signed(weight_B) if signed else oracle.absolute(weight_B)
        return {group: changes[group] for group in common}

    generator = torch.Generator().manual_seed(seed)
    batches = len(oracle.losses)
    resampled: dict[str, dict[str, list[float]]] = {name: {scope: [] for scope in SCOPES} for name in names}
    for _ in range(resamples):
        drawn = torch.randint(batches, (batches,), generator=generator)
        now = truth(torch.bincount(drawn, minlength=batches).double())
        for name in names:
            # A batch that comes twice counts twice, for the criterion too.
            scores = gathered.scores(name, drawn.tolist())
            for scope, value in scope_correlations(scores, now, channels).items():
                resampled[name][scope].append(value)
    whole = truth()
    return Correlations(
        scopes={name: scope_correlations(full[name], whole, channels) for name in names},
        layers={name: layer_correlations(full[name], whole, channels) for name in names},
        resampled=resampled if resamples else {},
        groups=len(common),
        channels=sum(len(index_S) for index_S in channels.values()),
    )
