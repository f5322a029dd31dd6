from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_taylor import prune_channels, trace_channels
from lightning_taylor.graph.types import Role
from lightning_taylor.recipes.r3dcnn import R3DCNN, WIDTHS, load_c3d

SHAPE = (2, 3, 1, 8, 32, 32)
"""Videos, clips, channels, frames, rows, columns."""


def small(**options: int) -> R3DCNN:
    return R3DCNN(num_classes=5, **{"width": 3, "features": 12, "hidden": 6, "size": 32, **options}).eval()


def test_every_channel_of_the_eight_convolutions_can_go() -> None:
    net = small()
    graph = trace_channels(net, torch.randn(SHAPE))
    assert {name: graph.groups[name].size for name in WIDTHS} == {name: 3 * times for name, times in WIDTHS.items()}
    assert not set(WIDTHS) & set(graph.frozen)


def test_the_recurrent_layers_input_and_its_state_shrink() -> None:
    net = small()
    graph = trace_channels(net, torch.randn(SHAPE))
    read_by = {s.tensor for s in graph.groups["fc6"].of(Role.CONSUMER)}
    assert read_by == {"recurrent.weight_ih"}
    prune_channels(net, graph, {"fc6": [1, 4], "recurrent": [5]})
    assert net.recurrent.input_size == 10
    assert net.recurrent.hidden_size == 5
    assert net(torch.randn(SHAPE)).shape == (2, 3, 5)


def test_a_pruned_net_says_what_the_net_with_silenced_channels_says() -> None:
    net, video = small().double(), torch.randn(SHAPE, dtype=torch.float64)
    graph = trace_channels(net, video)
    remove = graph.sample(0.5, torch.Generator().manual_seed(0))
    tensors = dict(net.named_parameters())
    kept = {name: value.detach().clone() for name, value in tensors.items()}
    with torch.no_grad():
        for name, rows in remove.items():
            for s in graph.groups[name].of(Role.CONSUMER):
                tensors[s.tensor].index_fill_(s.dim, s.index[rows].flatten(), 0.0)
        silenced = net(video)
        for name, value in kept.items():
            tensors[name].copy_(value)
        assert not torch.allclose(silenced, net(video))
    prune_channels(net, graph, remove)
    torch.testing.assert_close(net(video), silenced, rtol=1e-12, atol=1e-14)


def test_a_clip_knows_the_clips_before_it_and_none_after_it() -> None:
    net, video = small(), torch.randn(SHAPE)
    with torch.no_grad():
        before = net(video)
        video[:, 1] += 1
        after = net(video)
    assert torch.equal(before[:, 0], after[:, 0])
    assert (before[:, 1:] != after[:, 1:]).flatten(2).any(dim=2).all()


def test_videos_do_not_mix() -> None:
    net, video = small(), torch.randn(SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(net(video)[1:], net(video[1:]))


def test_the_poolings_are_c3ds() -> None:
    """8 frames of 112 x 112 end as one frame of 4 x 4."""
    net, seen = small(size=112), []
    net.pool5.register_forward_hook(lambda *args: seen.append(args[2].shape))
    net(torch.randn(1, 1, 1, 8, 112, 112))
    assert seen == [(1, 24, 1, 4, 4)]


@pytest.mark.parametrize(("option", "value", "multiple"), [("frames", 12, 8), ("size", 100, 16), ("size", 0, 16)])
def test_clips_that_cannot_be_halved_so_often_are_refused(option: str, value: int, multiple: int) -> None:
    with pytest.raises(ValueError, match=f"{option} must be a multiple of {multiple}, .* got {value}"):
        small(**{option: value})


@pytest.mark.parametrize("shape", [(2, 3, 3, 8, 32, 32), (2, 3, 1, 8, 48, 32), (6, 1, 8, 32, 32)])
def test_videos_of_another_shape_are_refused_with_both_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"wants videos of shape \(N, T, 1, 8, 32, 32\), got") as caught:
        small()(torch.zeros(shape))
    assert str(shape) in str(caught.value)


def c3d_state(**options: int) -> dict[str, Tensor]:
    torch.manual_seed(1)
    state = small(**options).state_dict()
    return {name: value for name, value in state.items() if name.startswith(("conv", "fc6"))} | {
        "fc8.weight": torch.zeros(487, 12)
    }


def test_the_weights_of_c3d_are_taken_over_up_to_its_first_linear_layer() -> None:
    state, net = c3d_state(in_channels=3), small(in_channels=3)
    recurrent = net.recurrent.weight_ih.detach().clone()
    load_c3d(net, state)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in state.items() if name != "fc8.weight")
    assert torch.equal(net.recurrent.weight_ih, recurrent)


def test_depth_is_seen_as_a_grey_picture_is_by_weights_of_colour() -> None:
    state, colour, depth = c3d_state(in_channels=3), small(in_channels=3), small()
    load_c3d(colour, state)
    load_c3d(depth, state)
    clip = torch.randn(2, 1, 8, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(depth.encode(clip), colour.encode(clip.expand(-1, 3, -1, -1, -1)))


def test_the_weights_of_another_net_are_refused_by_what_differs() -> None:
    with pytest.raises(ValueError, match=r"conv1\.weight \(4, 3, .*\) where \(3, 3, 3, 3, 3\) is wanted, .* and"):
        load_c3d(small(in_channels=3), c3d_state(in_channels=3, width=4))
    with pytest.raises(ValueError, match=r"conv1\.weight is missing where"):
        load_c3d(small(), nn.Linear(2, 2).state_dict())
