"""The criteria as pure functions of tensors: nothing is stored, hooked or reduced over ranks here.

Shape legend: L = leading entries as the layer saw them, N = examples, I = input channels of a layer (or entries of
the weight dimension that reads them), O = its outputs, P = positions, K = kernel elements, C = channels.
"""

from __future__ import annotations

from math import prod
from typing import Literal

import torch
from torch import Tensor

from lightning_taylor.scores.dot_products import dot_over_positions, dot_over_weights

__all__ = [
    "Absolute",
    "Positions",
    "batch_contributions",
    "fold_examples",
    "information_gain",
    "taylor",
    "taylor_contributions",
    "weight_magnitude",
]

Positions = Literal["sum", "mean"]
"""What is done over the positions of a feature map before the absolute value is taken."""

Absolute = Literal["example", "batch", "window"]
"""Of whose contribution the absolute value is taken: what lies inside it may cancel."""


def taylor_contributions(x: Tensor, grad: Tensor, *, dim: int, positions: Positions = "sum") -> Tensor:
    r"""What each input channel of a layer contributes to the loss, example by example.

    .. math::  v_{ni} = \sum_p x_{nip}\, g_{nip}

    The first-order change of the loss, with its sign reversed, when channel ``i`` is set to zero at this layer's
    input; also the derivative of the loss with respect to a gate of value 1 on that channel.

    Units: of the loss; carries whatever factor the loss was multiplied by before ``backward`` (gradient scale,
    accumulation), and with a mean-reduced loss the factor 1/N. Signed, local to the rank.

    Args:
        x: shape ``(L, I, *P)`` with ``dim=1`` or ``(L, *P, I)`` with ``dim=-1``, any float dtype and memory format;
            read only.
        grad: gradient of the loss with respect to ``x``, same shape and dtype; read only.
        dim: the dimension of ``x`` that carries the channels.
        positions: "mean" divides by the number of positions.

    Returns:
        Shape ``(L, I)``, float32, or float64 for float64 inputs.

    Raises:
        ValueError: if the shapes differ.

    Source: Molchanov et al. 2017, Eq. 7 and 8 before the absolute value, at the consumer's input.

    Example:
        >>> x = torch.tensor([[[1.0, 2.0], [3.0, 0.0]]])
        >>> grad = torch.tensor([[[1.0, -1.0], [2.0, 5.0]]])
        >>> taylor_contributions(x, grad, dim=1)
        tensor([[-1.,  6.]])
    """
    if x.shape != grad.shape:
        raise ValueError(f"x has shape {tuple(x.shape)} and grad {tuple(grad.shape)}; they must be equal")
    if x.ndim == 2:
        dtype = torch.promote_types(x.dtype, torch.float32)
        return x.to(dtype) * grad.to(dtype)
    contribution_LI = dot_over_positions(x, grad, dim)
    if positions == "mean":
        contribution_LI = contribution_LI / (prod(x.shape[1:]) // x.shape[dim])
    return contribution_LI


def fold_examples(contribution_LI: Tensor, examples: int) -> Tensor:
    r"""Per-example contributions from those of windows, frames or crops that were folded into the batch.

    .. math::  v_{ni} = \sum_{j<k} v_{(nk+j)\,i}, \qquad k = L / N

    The leading dimension is example-major; for other orders see ``scores.rows``. When it is no multiple of ``examples``
    (regions of a detector), nobody can say which entry belongs to which example: the sum is spread evenly over the
    examples, and the absolute value is then that of the whole batch.

    Units: as the input; signed.

    Args:
        contribution_LI: shape ``(L, I)``; read only.
        examples: N, at least 1.

    Returns:
        Shape ``(N, I)``, same dtype; the input itself if ``L`` equals ``N``.

    Raises:
        ValueError: if ``examples`` is less than 1.

    Source: this project.

    Example:
        >>> fold_examples(torch.tensor([[1.0], [2.0], [3.0], [-3.0]]), examples=2)
        tensor([[3.],
                [0.]])
    """
    if examples < 1:
        raise ValueError(f"examples must be at least 1, got {examples}")
    length, width = contribution_LI.shape
    if length == examples:
        return contribution_LI
    if length and length % examples == 0:
        return contribution_LI.view(examples, -1, width).sum(1)
    return (contribution_LI.sum(0, keepdim=True) / examples).expand(examples, width)


def taylor(contribution_CN: Tensor, absolute: Absolute = "example") -> Tensor:
    r"""Taylor score of each channel: the absolute value per example, then the mean.

    .. math::  \Theta_c = \frac{1}{N} \sum_n \left| N\, v_{cn} \right| = \sum_n \left| v_{cn} \right|

    How much the loss of one example changes, to first order and on average, when the channel is removed. With
    "batch" it is :math:`\left| \sum_n v_{cn} \right|`, how much the loss of the batch changes; with "window" the
    same with its sign, for the absolute value is still to come.

    Units: of the loss, for one example. Assumes a mean-reduced loss, whose gradients carry 1/N: then the score does
    not depend on the batch size. For a sum-reduced loss all scores are N times larger, a common factor that the
    normalisation and the ranking cancel while N is constant.

    Args:
        contribution_CN: shape ``(C, N)``, signed, summed over all consumers and calls; read only.
        absolute: of what the absolute value is taken.

    Returns:
        Shape ``(C,)``, same dtype; non-negative but for "window".

    Source: Molchanov et al. 2017, Eq. 8 and the sentence below it.

    Example:
        >>> taylor(torch.tensor([[0.5, -0.5], [0.25, 0.0]]))
        tensor([1.0000, 0.2500])
    """
    if absolute == "example":
        return contribution_CN.abs().sum(1)
    signed_C = contribution_CN.sum(1)
    return signed_C.abs() if absolute == "batch" else signed_C


def batch_contributions(weight: Tensor, grad: Tensor, *, dim: int) -> Tensor:
    r"""What each input channel of a layer contributes to the loss of the whole batch, from the layer's weight.

    .. math::  v_i = \sum_{o,k} w_{oik}\, g_{oik}

    By Euler's identity equal to the sum of ``taylor_contributions`` over examples and calls, since the layer is
    linear in ``w`` and in its input alike.

    Units: of the loss, of the batch (or of all the batches that were accumulated into ``grad``). Signed.

    Args:
        weight: shape ``(O, I, *K)`` with ``dim=1``, ``(I, O, *K)`` with ``dim=0``, any float dtype; read only.
        grad: same shape; unscaled, synchronised over ranks, before clipping; read only.
        dim: the dimension that reads the channels.

    Returns:
        Shape ``(I,)``, float32, or float64 for float64 inputs.

    Raises:
        ValueError: if the shapes differ.

    Source: Molchanov et al. 2019, the gate's gradient before the square.

    Example:
        >>> batch_contributions(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[1.0, -1.0], [2.0, 5.0]]), dim=1)
        tensor([ 7., -2.])
    """
    if weight.shape != grad.shape:
        raise ValueError(f"weight has shape {tuple(weight.shape)} and grad {tuple(grad.shape)}; they must be equal")
    return dot_over_weights(weight, grad, dim)


def weight_magnitude(weight: Tensor, *, dim: int) -> Tensor:
    r"""Mean squared weight of each output channel's kernel.

    .. math::  \Theta_o = \frac{1}{|w_o|} \sum_{i,k} w_{oik}^2

    Units: weight squared; independent of any data.

    Args:
        weight: shape ``(O, I, *K)`` with ``dim=0``, ``(I, O, *K)`` with ``dim=1``, any float dtype; read only.
        dim: the dimension that carries the output channels.

    Returns:
        Shape ``(O,)``, float32, or float64 for float64 weights.

    Source: Molchanov et al. 2017, section 2.2, "Minimum weight".

    Example:
        >>> weight_magnitude(torch.tensor([[1.0, 3.0], [0.0, 2.0]]), dim=0)
        tensor([5., 2.])
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    others = [d for d in range(weight.ndim) if d != dim]
    return weight.to(dtype).square().mean(others)


def information_gain(value_CN: Tensor, label_N: Tensor, *, bins: int) -> Tensor:
    r"""What the quantised value of each channel tells about the label.

    .. math::  IG_c = H(x_c) + H(y) - H(x_c, y)

    with :math:`x_c` the values of channel ``c`` in ``bins`` intervals of about equally many examples, and the
    entropies :math:`H` of the frequencies. Values that are equal always share an interval.

    Units: nats, between 0 and the lesser entropy. The estimate is too high by about
    ``(bins - 1) (classes - 1) / 2N``, for all channels alike as far as they fill their intervals.

    Args:
        value_CN: shape ``(C, N)``, any float dtype; read only.
        label_N: shape ``(N,)``, whole numbers; read only.
        bins: how many intervals, at least 2.

    Returns:
        Shape ``(C,)``, float32, non-negative.

    Raises:
        ValueError: if there are not as many labels as values.

    Source: Molchanov et al. 2017, section 2.2, "Mutual information"; the quantisation is this project's.

    Example:
        >>> value_CN = torch.tensor([[0.0, 0.1, 0.8, 0.9], [0.0, 1.0, 0.0, 1.0]])
        >>> information_gain(value_CN, torch.tensor([0, 0, 1, 1]), bins=2)
        tensor([0.6931, 0.0000])
    """
    channels, examples = value_CN.shape
    if label_N.shape != (examples,):
        raise ValueError(f"{examples} values per channel need as many labels, got shape {tuple(label_N.shape)}")
    classes, label_N = label_N.unique(return_inverse=True)
    quantile_Q = torch.arange(1, bins, device=value_CN.device) / bins
    order_CN = value_CN.sort(dim=1).values
    edge_CQ = order_CN[:, (quantile_Q * examples).ceil().long().clamp(max=examples - 1)].contiguous()
    # Edges are values, and a value belongs above its edge: equal ones cannot be torn apart.
    bin_CN = torch.searchsorted(edge_CQ, value_CN.contiguous(), right=True)
    cell_CN = bin_CN * len(classes) + label_N
    count_CX = torch.zeros(channels, bins * len(classes), device=value_CN.device)
    count_CX.scatter_add_(1, cell_CN, torch.ones_like(cell_CN, dtype=count_CX.dtype))
    joint_CBK = count_CX.view(channels, bins, len(classes)) / examples
    gain_C = _entropy(joint_CBK.sum(2)) + _entropy(joint_CBK.sum(1)) - _entropy(joint_CBK.flatten(1))
    return gain_C.clamp_min(0)


def _entropy(frequency_CX: Tensor) -> Tensor:
    return -torch.special.xlogy(frequency_CX, frequency_CX).sum(1)
