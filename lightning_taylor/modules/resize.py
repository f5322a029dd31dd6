"""Tensors cut to the channels that stay, and the modules that hold them.

What the proof by trial, the surgery and the loading of checkpoints share. Nothing here is a transaction: see
:func:`lightning_taylor.surgery.prune_channels` for that.

Shape legend: K = entries of one dimension that stay. ``keep`` maps a dimension to ``index_K``, sorted unique int64.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor, nn

from lightning_taylor.errors import UncoupledChannelsError
from lightning_taylor.graph.types import Axis, LinkedAttribute
from lightning_taylor.modules.attributes import Known, concerned, follow_shapes, known, rule_of
from lightning_taylor.modules.model_copy import named_tensors

__all__ = [
    "Touched",
    "followed",
    "hold",
    "owners",
    "resized",
    "shrink_modules",
    "touched_tensors",
    "with_shapes",
]

_LARGE, _SLAB = 2**22, 2**18  # entries


@dataclass(frozen=True, eq=False)
class Touched:
    """One parameter or buffer that loses entries.

    Attributes:
        tensor: the living tensor.
        name: the qualified name under which ``keep`` knows it.
        names: every qualified name it has in the model; more than one if it is tied or its module is shared.
        keep: dimension -> ``index_K``.
    """

    tensor: Tensor
    name: str
    names: tuple[str, ...]
    keep: dict[int, Tensor] = field(default_factory=dict)


def resized(tensor: Tensor, keep: Mapping[int, Tensor]) -> Tensor:
    """The entries that stay along each dimension in ``keep``, in a storage of their own.

    Dtype, device and memory format stay. ``index_select`` itself would forget ``channels_last``, so the selection
    runs over the dimensions in the order in which they lie in memory; a 1x1 or one-channel weight, which fits both
    formats, keeps the one that its strides spell.

    Args:
        tensor: any dense tensor; read only.
        keep: dimension -> ``index_K``, on any device. Empty: a copy.

    Returns:
        A tensor without gradient history that shares no memory with ``tensor``.

    Example:
        >>> resized(torch.arange(6).view(2, 3), {1: torch.tensor([0, 2])})
        tensor([[0, 2],
                [3, 5]])
    """
    if torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        with torch.inference_mode(False), torch.no_grad():
            return resized(tensor, keep)
    order = _memory_order(tensor)
    stored = tensor.permute(order)
    if not keep:
        stored = stored.clone(memory_format=torch.contiguous_format)
    # The dimension that loses most goes first: what it drops is not copied again.
    dims = sorted(keep, key=lambda d: keep[d].numel() / tensor.shape[d])
    stored = _selected(stored, [(order.index(dim), keep[dim].to(tensor.device)) for dim in dims])
    if order == tuple(range(tensor.ndim)):
        return stored
    # `set_` gives a plain tensor; a permuted view would keep its base as an attribute.
    return hold(stored.new_empty(0), stored.permute([order.index(d) for d in range(tensor.ndim)]))


def _selected(stored: Tensor, keep: list[tuple[int, Tensor]]) -> Tensor:
    """One selection after the other; of a large tensor on a CPU slab by slab.

    There, what costs is fresh memory, page by page: the 411 MB between the two selections of VGG-16's first linear
    layer take as long to come by as the result.
    """
    if len(keep) > 1 and stored.device.type == "cpu" and stored.numel() > _LARGE:
        outer, index_K = min(keep, key=lambda selection: selection[0])
        rest = [selection for selection in keep if selection[0] != outer]
        shape = [next((len(index) for d, index in keep if d == dim), size) for dim, size in enumerate(stored.shape)]
        out = stored.new_empty(shape)
        rows = max(1, _SLAB * stored.shape[outer] // stored.numel())
        for slab, part in zip(out.split(rows, outer), index_K.split(rows), strict=True):
            slab.copy_(_selected(stored.index_select(outer, part), rest))
        return out
    for dim, index_K in keep:
        stored = stored.index_select(dim, index_K)
    return stored


def hold(tensor: Tensor, new: Tensor) -> Tensor:
    """Let the living ``tensor`` hold the storage, shape and strides of ``new``; run it without gradients.

    By ``set_``: assigning ``.data`` would keep a gradient accumulator of the old shape, and a new ``Parameter``
    would lose ties, hooks, its place in the optimizer and whoever else holds it.
    """
    return tensor.set_(new)  # pyright: ignore[reportArgumentType]  (the stub knows storages only)


def shrink_modules(model: nn.Module, keep: Mapping[Axis, Tensor], followers: Iterable[LinkedAttribute] = ()) -> None:
    """Cut a model that no optimizer holds, in place; its parameters and buffers stay the same objects.

    Gradients of the tensors that were cut are dropped. Not a transaction: an error leaves the model half cut.

    Args:
        model: the module whose qualified names ``keep`` uses.
        keep: axis -> ``index_K``, as from ``ChannelGraph.keep``.
        followers: the attributes that follow beyond those of the modules' classes, as ``ChannelGraph.followers``.

    Raises:
        UncoupledChannelsError: if the model has no tensor of that name, or the attributes cannot follow.
    """
    touched = touched_tensors(model, keep)
    with torch.inference_mode(False), torch.no_grad():
        for t in touched:
            hold(t.tensor, resized(t.tensor, t.keep))
            t.tensor.grad = None
    widths = {name: tuple(t.shape) for name, t in named_tensors(model)}
    values = known(concerned(followers, {t.name for t in touched}), widths)
    for module, local, own in followed(model, owners(model, touched), values):
        follow_shapes(module, local, own)


def touched_tensors(model: nn.Module, keep: Mapping[Axis, Tensor]) -> list[Touched]:
    """Every living tensor that ``keep`` names, once, with all its names and all its dimensions.

    Raises:
        UncoupledChannelsError: if the model has no tensor of that name, or two names of one tensor disagree.
    """
    named = dict(named_tensors(model))
    aliases: dict[int, list[str]] = {id(named[name]): [] for name, _ in keep if name in named}
    for name, tensor in named.items():
        if id(tensor) in aliases:
            aliases[id(tensor)].append(name)
    touched: dict[int, Touched] = {}
    for (name, dim), index_K in keep.items():
        if name not in named:
            raise UncoupledChannelsError(
                f"the graph cuts {name!r}, but the model has no parameter or buffer of that name; trace it again"
            )
        tensor = named[name]
        entry = touched.setdefault(id(tensor), Touched(tensor, name, tuple(aliases[id(tensor)])))
        known_K = entry.keep.setdefault(dim, index_K)
        if known_K is not index_K and not torch.equal(known_K, index_K):
            raise UncoupledChannelsError(
                f"{name!r} is the same tensor as {entry.name!r}, but other entries of dimension {dim} are to stay; "
                "trace the model again"
            )
    return list(touched.values())


def owners(model: nn.Module, touched: Sequence[Touched]) -> list[tuple[nn.Module, dict[Axis, Tensor]]]:
    """The modules whose attributes have to follow, innermost first, with what stayed in their own local names.

    Every module on the way to a tensor counts, so that a parametrized layer (whose parameter lies two modules
    deeper) and a registered container follow too.
    """
    around = {name[:end] for t in touched for name in t.names for end in _ends(name)}
    named = model.named_modules(remove_duplicate=False)
    following = {name: module for name, module in named if name in around and rule_of(module)}
    found: dict[int, tuple[int, nn.Module, dict[Axis, Tensor]]] = {}
    for t in touched:
        for parts in (name.split(".") for name in t.names):
            for depth in range(len(parts)):
                if (module := following.get(".".join(parts[:depth]))) is not None:
                    local = found.setdefault(id(module), (depth, module, {}))[2]
                    local.update({(".".join(parts[depth:]), dim): index_K for dim, index_K in t.keep.items()})
    return [(module, local) for _, module, local in sorted(found.values(), key=lambda f: -f[0])]


def _ends(name: str) -> Iterator[int]:
    """Where the names of the modules around a tensor end, the outermost's first."""
    yield 0
    yield from (place for place, letter in enumerate(name) if letter == ".")


def followed(
    model: nn.Module, owning: Iterable[tuple[nn.Module, dict[Axis, Tensor]]], values: Known
) -> Iterator[tuple[nn.Module, dict[Axis, Tensor], Mapping[str, int]]]:
    """The modules whose attributes have to follow, with what stayed and what is known of each."""
    left = {id(model.get_submodule(name)): (model.get_submodule(name), own) for name, own in values.items()}
    for module, local in owning:
        yield module, local, left.pop(id(module), (module, {}))[1]
    for module, own in left.values():
        yield module, {}, own


def _memory_order(tensor: Tensor) -> tuple[int, ...]:
    """The dimensions from the slowest to the fastest in memory."""
    plain = tuple(range(tensor.ndim))
    channels_last = (0, *plain[2:], 1)
    for order in (plain, channels_last) if tensor.ndim in (4, 5) else (plain,):
        if tensor.stride() == _dense_strides(tensor.shape, order):
            return order
    return tuple(sorted(plain, key=lambda d: -tensor.stride(d)))


def _dense_strides(shape: torch.Size, order: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [0] * len(shape), 1
    for dim in reversed(order):
        strides[dim] = step
        step *= shape[dim]
    return tuple(strides)


def with_shapes(
    net: nn.Module, shapes: Mapping[str, tuple[int, ...]], followers: Iterable[LinkedAttribute] = ()
) -> nn.Module:
    """A deep copy whose parameters and buffers have these shapes; what it computes is meaningless.

    Args:
        net: any module without hooks that may not be copied; left as it is.
        shapes: qualified name -> shape, as ``ChannelGraph.shapes`` or ``ChannelGraph.dense``. Names that the net
            does not have are skipped; tensors that are not named keep their shape.
        followers: as ``ChannelGraph.followers``.

    Returns:
        The copy: same device, dtype, memory format and mode, with the modules' attributes following.

    Raises:
        UncoupledChannelsError: if a module's attributes fit no such shape.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1))
        >>> with_shapes(net, {"0.weight": (2, 3, 1, 1), "0.bias": (2,), "1.weight": (4, 2, 1, 1)})[0]
        Conv2d(3, 2, kernel_size=(1, 1), stride=(1, 1))
    """
    twin = copy.deepcopy(net)
    tensors = dict(chain(twin.named_parameters(), twin.named_buffers()))
    with torch.no_grad():
        for name, shape in shapes.items():
            tensor = tensors.get(name)
            if tensor is not None and tuple(tensor.shape) != tuple(shape):
                entries = {d: torch.arange(n) % tensor.shape[d] for d, n in enumerate(shape) if n != tensor.shape[d]}
                hold(tensor, resized(tensor, entries))
    values = known(followers, shapes)
    for name, module in reversed(list(twin.named_modules())):
        follow_shapes(module, values=values.get(name))
    return twin
