"""Numbers that a module keeps for others, and that its forward pass never reads, tell the widths that are left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_taylor import ChannelGraph, prune_channels, trace_channels
from lightning_taylor.checkpoint.widths import fit_shapes, widths_of
from lightning_taylor.utilities.plain import from_plain, to_plain

X = torch.rand(2, 3, 9, 9)


def conv(into: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(into, out, 3, padding=1), nn.ReLU())


class Classifier(nn.Module):
    """As libraries of networks have it: a new head is made by the number of features."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv(3, 8), nn.Sequential(conv(8, 16), conv(16, 12)), nn.Linear(12, 4)
        self.num_features = self.head_hidden_size = 12
        self.info = [{"chs": 8, "module": "stem"}, {"chs": 16, "module": "body.0"}, {"chs": 12, "module": "body"}]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))

    def reset_classifier(self, classes: int) -> None:
        self.head = nn.Linear(self.num_features, classes)


def pruned(net: nn.Module) -> ChannelGraph:
    graph = trace_channels(net, X)
    assert graph.groups
    return prune_channels(net, graph, graph.sample(0.4, torch.Generator().manual_seed(0)))


def test_a_new_head_fits_and_every_stage_tells_its_channels() -> None:
    net = Classifier()
    graph = pruned(net)
    assert net.num_features == net.head_hidden_size == net.head.in_features < 12
    widths = [net.stem(X).shape[1], net.body[0](net.stem(X)).shape[1], net.num_features]
    assert [row["chs"] for row in net.info] == widths
    fresh = Classifier()
    fit_shapes(fresh, net.state_dict(), widths_of(graph))
    assert (fresh.num_features, fresh.info) == (net.num_features, net.info)
    net.reset_classifier(7)
    assert net(X).shape == (2, 7)


class Encoder(nn.Module):
    """Returns a pyramid, the input first, and says how many channels each map of it has."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = conv(3, 8), conv(8, 8), conv(8, 16)
        self._out_channels = (3, 8, 8, 16)

    def forward(self, x: Tensor) -> list[Tensor]:
        one = self.one(x)
        two = self.two(one)
        return [x, one, two, self.three(two)]


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = Encoder(), nn.Conv2d(32, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat(self.encoder(x)[1:], 1))


def test_a_list_tells_the_channels_of_all_maps_that_are_returned() -> None:
    net = Decoder()
    pruned(net)
    assert [m.shape[1] for m in net.encoder(X)] == list(net.encoder._out_channels)
    assert min(net.encoder._out_channels[1:]) < 8


class Twice(nn.Module):
    """Two layers of one width, and a number that may be of either."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = conv(3, 8), conv(8, 8), nn.Conv2d(8, 2, 1)
        self.feature_dim = 8

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(x)))


def test_a_number_that_may_be_of_two_widths_stays() -> None:
    net: Any = Twice()
    pruned(net)
    assert net.feature_dim == 8
    assert net.one[0].out_channels < 8


def test_a_number_in_doubt_is_listed_with_the_reason() -> None:
    doubtful = {"feature_dim": "8: tensors of several kinds have as many channels"}
    for graph in (trace_channels(Twice(), X), pruned(Twice()), from_plain(ChannelGraph, to_plain(pruned(Twice())))):
        assert graph.doubtful == doubtful
    refused = {"feature_dim": "8: the network would compute something else if it followed"}
    assert trace_channels(Scaled(), X).doubtful == refused
    assert trace_channels(Twice(), X, ignore=["one", "two"]).doubtful == {}  # nothing can go
    assert trace_channels(Classifier(), X).doubtful == trace_channels(Decoder(), X).doubtful == {}


class Scaled(nn.Module):
    """A number that the forward pass reads as it was."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.head = conv(3, 8), nn.Conv2d(8, 2, 1)
        self.feature_dim = 8

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.one(x) / self.feature_dim)


def test_a_number_stays_where_the_channels_can_go_only_without_it() -> None:
    net: Any = Scaled()
    pruned(net)
    assert net.feature_dim == 8
    assert net.one[0].out_channels < 8


class ScaledClassifier(Classifier):
    """Reads one of the numbers that count the same channels, by itself, in a dict or in a part; the others are told."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, self.config, self.part = where, {"dim": 12, "of": "body"}, nn.Identity()
        self.embed_dim, self.part.dim = 12, 12  # type: ignore[assignment]

    def scale(self) -> int:
        read = {"own": lambda: self.embed_dim, "dict": lambda: self.config["dim"], "part": lambda: self.part.dim}
        return read[self.where]()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.part(self.body(self.stem(x)).mean((2, 3))) / self.scale())


@pytest.mark.parametrize("where", ["own", "dict", "part"])
def test_a_number_that_is_read_and_must_stay_takes_no_other_with_it(where: str) -> None:
    net: Any = ScaledClassifier(where)
    pruned(net)
    assert net.scale() == 12
    assert net.num_features == net.head_hidden_size == net.head.in_features == net.info[2]["chs"] < 12


class Scaling(nn.Module):
    """Arranges its weight and its input by numbers that are not called after widths, and tells one of the output."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shape, self.n, self.other = (width, 1, 1), width, (4, 4)
        self.weight = nn.Parameter(torch.rand(width))
        self.out_channels = width

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(len(x), self.n, -1) * self.other[0]
        return flat.unflatten(2, x.shape[2:]) * self.weight.view(self.shape)


def test_a_number_of_any_name_follows_where_the_code_reads_it_and_only_so_the_channels_can_go() -> None:
    net: Any = nn.Sequential(conv(3, 8), Scaling(8), conv(8, 4), nn.Conv2d(4, 2, 1))
    net[2].other = (4, 4)  # as wide as its channels, and not read
    pruned(net)
    left = net[0][0].out_channels
    assert left < 8
    assert (net[1].n, net[1].shape, net[1].out_channels, net[1].other) == (left, (left, 1, 1), left, (4, 4))
    assert net[2][0].out_channels < 4
    assert net[2].other == (4, 4)


class Deep(Classifier):
    """A head of several layers, of which the last one is made anew by a number that the others must have."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 4))  # type: ignore[assignment]
        self.head_hidden_size = 20

    def reset_classifier(self, classes: int) -> None:
        self.head[-1] = nn.Linear(self.head_hidden_size, classes)  # type: ignore[operator]


def test_a_number_may_count_what_is_inside_of_a_sequential() -> None:
    net: Any = Deep()
    pruned(net)
    assert net.head_hidden_size == net.head[-1].in_features < 20
    assert net.num_features == net.head[0].in_features < 12
    net.reset_classifier(7)
    assert net(X).shape == (2, 7)


def test_of_two_layers_of_a_sequential_a_new_head_is_made_by_the_last_and_another_number_stays() -> None:
    net: Any = Deep()
    net.head = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 4))
    net.hidden_dim = 20
    assert pruned(net).doubtful == {"hidden_dim": "20: tensors of several kinds have as many channels"}
    assert net.hidden_dim == 20
    assert net.head_hidden_size == net.head[-1].in_features < 20
    net.reset_classifier(7)
    assert net(X).shape == (2, 7)


class Isotropic(Classifier):
    """Several stages of one width, which are pruned apart; a new head is made by that of the last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv(3, 8), nn.Sequential(conv(8, 8), conv(8, 8)), nn.Linear(8, 4)
        self.num_features = self.head_hidden_size = self.embed_dim = 8
        self.info = []


def test_of_several_stages_a_new_head_is_made_by_the_last() -> None:
    net: Any = Isotropic()
    trace = trace_channels(net, X)
    graph = prune_channels(net, trace, {"stem.0": [0], "body.0.0": [0, 1], "body.1.0": [0, 1, 2]})
    assert (net.num_features, net.head_hidden_size, net.embed_dim) == (5, 5, 8)
    assert graph.doubtful == {"embed_dim": "8: tensors of several kinds have as many channels"}
    net.reset_classifier(7)
    assert net(X).shape == (2, 7)


class Pairs(nn.Module):
    """A stage with tokens beside the map, as wide as it, and something of another width."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.other = conv(8, 12), conv(8, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, other = self.inner(x), self.other(x)
        return x, x.mean((2, 3)), other


def test_a_row_of_a_part_that_returns_several_tensors_counts_the_kind_that_is_as_wide() -> None:
    class Several(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.body = Pairs()  # type: ignore[assignment]
            self.info = [{"chs": 8, "module": "stem"}, {"chs": 12, "module": "body"}]

        def forward(self, x: Tensor) -> Tensor:
            _, tokens, other = self.body(self.stem(x))
            return torch.cat([self.head(tokens), other.mean((2, 3))], 1)

    net: Any = Several()
    pruned(net)
    assert [row["chs"] for row in net.info] == [net.stem[0].out_channels, net.body.inner[0].out_channels]
    assert net.info[1]["chs"] == net.num_features < 12


class Fixed(Classifier):
    """A network whose code takes the first stage as it is."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        assert x.shape[1] == 8
        return self.head(self.body(x).mean((2, 3)))


def test_numbers_follow_beside_others_that_may_not() -> None:
    net: Any = Fixed()
    graph = pruned(net)
    assert "assumes its width" in graph.frozen["stem.0"]
    assert [row["chs"] for row in net.info] == [8, net.body[0][0].out_channels, net.num_features]
    assert net.num_features == net.head.in_features < 12


class Halves(nn.Module):
    """Takes its channels apart by a number, beside one of the same value that is likelier by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = conv(3, 16), nn.Conv2d(8, 2, 1), nn.Conv2d(8, 2, 1)
        self.num_features, self.width, self.at = 16, 8, 8

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.left(x[:, : self.at]) + self.right(x[:, self.at :])


def test_a_number_follows_where_channels_were_refused_for_another_reason() -> None:
    net: Any = Halves()
    graph = trace_channels(net, X)
    left, right = (name for name, group in graph.groups.items() if group.size == 8)
    prune_channels(net, graph, {left: torch.tensor([0, 1]), right: torch.tensor([3])})
    assert (net.at, net.left.in_channels, net.right.in_channels) == (6, 6, 7)
    assert net.num_features == 13


class Asserting(nn.Module):
    """As wide out as in: one number is called after the output, the other is compared with the input."""

    def __init__(self) -> None:
        super().__init__()
        self.channels, self.out_channels, self.inner = 8, 8, conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.channels
        return self.inner(x)


def test_of_two_equal_widths_the_name_or_the_code_tells_which_is_counted() -> None:
    net: Any = nn.Sequential(conv(3, 8), Asserting(), nn.Conv2d(8, 2, 1))
    graph = trace_channels(net, X)
    prune_channels(net, graph, {"0.0": torch.arange(3), "1.inner.0": torch.arange(2)})
    assert net(X).shape[1] == 2
    assert (net[1].channels, net[1].out_channels) == (5, 6)


def test_a_number_that_no_code_compares_is_not_guessed() -> None:
    class Indifferent(Asserting):
        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    net: Any = nn.Sequential(conv(3, 8), Indifferent(), nn.Conv2d(8, 2, 1))
    pruned(net)
    assert net[1].channels == 8
    assert net[1].out_channels == net[1].inner[0].out_channels < 8


@pytest.mark.parametrize("name", ["image_width", "base_width", "num_classes", "rank"])
def test_a_number_that_is_not_called_after_a_width_stays(name: str) -> None:
    net: Any = Classifier()
    setattr(net, name, 12)
    pruned(net)
    assert getattr(net, name) == 12
    assert net.num_features < 12


def test_what_a_module_was_built_with_stays() -> None:
    net: Any = Classifier()
    net.config = {"num_features": 12}
    pruned(net)
    assert net.config == {"num_features": 12}
    assert net.num_features < 12
