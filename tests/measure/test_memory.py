from __future__ import annotations

import torch
from torch import nn

from lightning_taylor.measure.memory import peak_bytes

FLOAT = 4


def test_the_peak_of_a_small_net_is_what_its_shapes_say():
    """Two examples of 4 x 4 positions: the peak is the ReLU, where its input and its output are both alive."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(8, 4, 1, bias=False))
    x = torch.rand(2, 3, 4, 4)
    weights, given, hidden = 8 * 3 * 9 + 4 * 8, 2 * 3 * 16, 2 * 8 * 16
    assert peak_bytes(lambda: net(x), [*net.parameters(), x]) == FLOAT * (weights + given + 2 * hidden)


def test_an_in_place_operation_and_a_view_cost_nothing():
    net = nn.Sequential(nn.Linear(4, 50, bias=False), nn.ReLU(inplace=True), nn.Unflatten(1, (5, 10)))
    x = torch.rand(10, 4)
    assert peak_bytes(lambda: net(x), [*net.parameters(), x]) == FLOAT * (200 + 40 + 500)


def test_a_residual_stays_alive_until_it_is_added():
    def block(x):
        y = x + 1
        z = (y + 1) * 2  # y, y + 1 and the product
        return y + z  # y, the product and the sum

    x = torch.rand(100)
    assert peak_bytes(lambda: block(x), [x]) == FLOAT * 400


def test_what_was_given_back_does_not_count_again():
    def chain(x):
        for _ in range(20):
            x = x + 1
        return x

    x = torch.rand(100)
    assert peak_bytes(lambda: chain(x), [x]) == FLOAT * 300


def test_tied_and_repeated_tensors_count_once():
    weight = torch.rand(100)
    assert peak_bytes(lambda: None, [weight, weight.view(10, 10), weight[:5]]) == FLOAT * 100


def test_the_work_runs_without_gradients():
    weight = torch.rand(3, requires_grad=True)
    flags = []
    peak_bytes(lambda: flags.append((weight * 2).requires_grad), [weight])
    assert flags == [False]
