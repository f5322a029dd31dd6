from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian
from torch.nn.functional import cross_entropy

from lightning_taylor.recipes.probe import collect_features, fit_head, logistic_regression


def problem(n: int = 60, features: int = 4, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Classes that overlap, so that the regression is decided by more than the decay."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % classes
    centre = torch.randn(classes, features, generator=generator)
    return centre[label] + torch.randn(n, features, generator=generator), label


def newton(feature: Tensor, label: Tensor, classes: int, decay: float) -> Tensor:
    """The slow twin: the probabilities that Newton's method finds in float64 from the formula as it is printed."""
    x = feature.double()
    x = (x - x.mean(0)) / (x.std(0, correction=0) + 1e-5)
    theta = torch.zeros(classes * (x.shape[1] + 1), dtype=torch.float64)

    def logits(theta: Tensor) -> Tensor:
        weight, bias = theta[:-classes].view(classes, -1), theta[-classes:]
        return x @ weight.T + bias

    def loss(theta: Tensor) -> Tensor:
        return cross_entropy(logits(theta), label) + decay / 2 * theta[:-classes].square().sum()

    for _ in range(20):
        # All biases may rise together: the Hessian is singular in that direction.
        theta = theta - torch.linalg.pinv(hessian(loss, theta)) @ jacobian(loss, theta)
    return logits(theta).softmax(1)


def probabilities(feature: Tensor, label: Tensor, classes: int, decay: float = 1e-2) -> Tensor:
    weight, bias = logistic_regression(feature, label, classes, decay)
    return (feature @ weight.T + bias).softmax(1)


@pytest.mark.parametrize("decay", [1e-2, 1.0])
def test_the_regression_is_the_minimum_of_its_formula(decay: float) -> None:
    feature, label = problem()
    found = probabilities(feature, label, 3, decay)
    torch.testing.assert_close(found.double(), newton(feature, label, 3, decay), atol=2e-3, rtol=0)


@settings(max_examples=15, deadline=None)
@given(st.floats(0.01, 100), st.floats(-50, 50), st.integers(0, 5))
def test_the_units_of_the_features_do_not_matter(scale: float, shift: float, seed: int) -> None:
    feature, label = problem(seed=seed)
    unit = torch.tensor([scale, 1.0, 1 / scale, 1.0])
    found = probabilities(feature * unit + shift * unit, label, 3)
    torch.testing.assert_close(found, probabilities(feature, label, 3), atol=2e-2, rtol=0)


def test_a_feature_that_never_changes_does_no_harm() -> None:
    feature, label = problem()
    feature[:, 1] = 7.0
    weight, bias = logistic_regression(feature, label, 3)
    assert bool(weight.isfinite().all())
    assert bool(bias.isfinite().all())


def test_a_class_that_has_no_example_gets_no_vote() -> None:
    feature, label = problem()
    assert int(probabilities(feature, label, 4).argmax(1).max()) < 3


def test_a_fit_under_no_grad_works_all_the_same() -> None:
    with torch.inference_mode():
        assert probabilities(*problem(), classes=3).shape == (60, 3)


class Headed(nn.Module):
    def __init__(self, convolution: bool, bias: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU())
        self.classifier = nn.Conv2d(5, 3, 1, bias=bias) if convolution else nn.Linear(5, 3, bias=bias)
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.classifier(x).mean((2, 3)) if self.convolution else self.classifier(x.mean((2, 3)))


def batches() -> list[tuple[Tensor, Tensor]]:
    label = torch.arange(30) % 3
    image = torch.randn(30, 3, 6, 6) + label.view(-1, 1, 1, 1)
    return [(image[:20], label[:20]), (image[20:], label[20:])]


@pytest.mark.parametrize("convolution", [False, True])
def test_a_fitted_head_answers_as_the_regression_on_its_features(convolution: bool) -> None:
    net, data = Headed(convolution), batches()
    feature, label = collect_features(net, data)
    fit_head(net, data)
    net.eval()
    logits = torch.cat([net(image) for image, _ in data])
    torch.testing.assert_close(logits.softmax(1), probabilities(feature, label, 3), atol=1e-3, rtol=0)


@pytest.mark.parametrize("training", [False, True])
def test_fitting_a_head_leaves_everything_else_as_it_was(training: bool) -> None:
    net = Headed(convolution=False).train(training)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    head = net.classifier.weight
    fit_head(net, batches())
    changed = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"classifier.weight", "classifier.bias"}
    assert net.training is training
    assert net.classifier.weight is head
    assert not net.classifier._forward_pre_hooks


def test_a_head_without_a_bias_stays_without_one() -> None:
    net = Headed(convolution=False, bias=False)
    fit_head(net, batches())
    assert net.classifier.bias is None


def test_a_network_that_fails_is_left_without_a_hook() -> None:
    net = Headed(convolution=False)
    with pytest.raises(RuntimeError):
        fit_head(net, [(torch.randn(2, 4, 6, 6), torch.zeros(2, dtype=torch.int64))])
    assert not net.classifier._forward_pre_hooks
    assert net.training
