"""A new head, fitted on frozen features before the first step of a fine-tuning.

Fine-tuning a pretrained network from a random head moves its features by the gradients of a classifier that knows
nothing yet. A head fitted first starts where a linear probe ends.

Shape legend: N = examples, F = features, K = classes.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_taylor.recipes.models import find_head

__all__ = ["collect_features", "fit_head", "logistic_regression"]


def fit_head(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], decay: float = 1e-2) -> None:
    """Set the head of a network to a logistic regression on its frozen features, in place.

    A convolutional head (SqueezeNet's) gets the regression on the features' mean over positions.

    Args:
        model: with a head as ``find_head`` knows it; its mode is restored, its other tensors are left as they are.
        batches: images and int64 labels, best without augmentation and in a fixed order: the result depends on
            nothing else.
        decay: as in ``logistic_regression``.
    """
    head = find_head(model)[1]
    feature_NF, label_N = collect_features(model, batches)
    weight_KF, bias_K = logistic_regression(feature_NF, label_N, head.weight.shape[0], decay)
    with torch.no_grad():
        head.weight.copy_(weight_KF.view_as(head.weight))
        if head.bias is not None:
            head.bias.copy_(bias_K)


@torch.no_grad()
def collect_features(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """What the head of a network receives in evaluation mode, with the labels.

    Args:
        model: as in ``fit_head``.
        batches: as in ``fit_head``; moved to the model's device.

    Returns:
        Shape ``(N, F)``, float32, the mean over positions if the head is a convolution; and ``(N,)``, int64.
    """
    seen, labels, was_training = [], [], model.training
    head = find_head(model)[1]
    handle = head.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    try:
        model.eval()
        for image, label in batches:
            model(image.to(head.weight.device))
            labels.append(label.to(head.weight.device))
    finally:
        handle.remove()
        model.train(was_training)
    features = torch.cat(seen).float()
    return features.flatten(2).mean(dim=2) if features.ndim > 2 else features, torch.cat(labels)


@torch.inference_mode(False)
@torch.enable_grad()
def logistic_regression(
    feature_NF: Tensor, label_N: Tensor, num_classes: int, decay: float = 1e-2
) -> tuple[Tensor, Tensor]:
    r"""Weights and biases of a multinomial logistic regression, by L-BFGS over the whole set.

    .. math::  \min_{W, b} \frac{1}{N} \sum_n \mathrm{CE}(W x_n + b, y_n) + \frac{\lambda}{2} \lVert W \rVert^2

    with ``x`` standardised per feature, so that the decay weighs all features alike; the standardisation is folded
    into the weights returned. Deterministic: it starts from zero and sees no batches.

    Args:
        feature_NF: shape ``(N, F)``, float32.
        label_N: shape ``(N,)``, int64, values below ``num_classes``.
        num_classes: ``K``.
        decay: :math:`\lambda`.

    Returns:
        Shapes ``(K, F)`` and ``(K,)``, float32, for raw features.

    Example:
        >>> weight, bias = logistic_regression(torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1]), num_classes=2)
        >>> (torch.tensor([[0.1], [0.9]]) @ weight.T + bias).argmax(dim=1)
        tensor([0, 1])
    """
    mean_F, scale_F = feature_NF.mean(dim=0), feature_NF.std(dim=0, correction=0) + 1e-5
    x_NF = (feature_NF - mean_F) / scale_F
    label_N = label_N.clone()  # a tensor made in inference mode cannot be saved for the backward pass
    weight_KF = x_NF.new_zeros(num_classes, x_NF.shape[1]).requires_grad_()
    bias_K = x_NF.new_zeros(num_classes).requires_grad_()
    optimizer = torch.optim.LBFGS([weight_KF, bias_K], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = cross_entropy(x_NF @ weight_KF.T + bias_K, label_N) + decay / 2 * weight_KF.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    raw_KF = weight_KF.detach() / scale_F
    return raw_KF, bias_K.detach() - raw_KF @ mean_F
