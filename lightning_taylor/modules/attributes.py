"""Modules' plain attributes (``out_channels``, ``groups``, ``normalized_shape`` ...) follow their tensors' shapes.

One table, keyed by module class; a class without a row of its own inherits that of its nearest ancestor.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrize import is_parametrized

from lightning_taylor.errors import UncoupledChannelsError
from lightning_taylor.graph.types import Axis, LinkedAttribute
from lightning_taylor.modules.attention import HEAD_WIDTH
from lightning_taylor.modules.attention_registry import heads_left
from lightning_taylor.modules.attribute_paths import get_number, replaced, split_path

__all__ = [
    "AttributeRule",
    "Known",
    "attribute_changes",
    "concerned",
    "follow_shapes",
    "known",
    "register_attributes",
    "rule_of",
]

AttributeRule = Callable[[nn.Module, Mapping[Axis, Tensor]], Mapping[str, object]]
"""``rule(module, keep)`` -> attribute name -> its value for the tensors that the module holds now.

``keep`` has the entries that stayed, in the module's own names (``("weight", 0)``), or is empty where only the new
shapes are known, as when a checkpoint is loaded. The module's attributes still have their old values.
"""

Known = Mapping[str, Mapping[str, int]]
"""Module name -> attribute -> its value: what a trace has found to follow the widths."""


def known(followers: Iterable[LinkedAttribute], widths: Mapping[str, tuple[int, ...]]) -> Known:
    """What the followers are at some widths.

    Args:
        followers: as ``ChannelGraph.followers``.
        widths: tensor name -> shape, as ``ChannelGraph.shapes``; followers of other tensors are left out.

    Raises:
        ValueError: if one would be no whole number.
    """
    values: dict[str, dict[str, int]] = {}
    for f in followers:
        if all(tensor in widths for tensor, _ in f.axes):
            width, *others = (widths[tensor][dim] for tensor, dim in f.axes)
            values.setdefault(f.module, {})[f.attribute] = f.at(width - sum(others))
    return values


def concerned(followers: Iterable[LinkedAttribute], tensors: Container[str]) -> list[LinkedAttribute]:
    """The followers that depend on one of these tensors."""
    return [f for f in followers if any(tensor in tensors for tensor, _ in f.axes)]


def register_attributes(cls: type[nn.Module], rule: AttributeRule) -> None:
    """Add the row of a user's own module class, or replace one; subclasses without a row of their own inherit it.

    A rule runs when a tensor of the module itself, or of a module inside it, was resized; inner modules run first.

    Args:
        cls: the class.
        rule: see :data:`AttributeRule`.

    Example:
        >>> class Scale(torch.nn.Module):
        ...     def __init__(self, width):
        ...         super().__init__()
        ...         self.width, self.gain = width, torch.nn.Parameter(torch.ones(width))
        >>> register_attributes(Scale, lambda module, keep: {"width": len(module.gain)})
        >>> scale = Scale(4)
        >>> scale.gain = torch.nn.Parameter(torch.ones(2))
        >>> follow_shapes(scale)
        {'width': (4, 2)}
    """
    _RULES[cls] = rule


def follow_shapes(
    module: nn.Module, keep: Mapping[Axis, Tensor] | None = None, values: Mapping[str, int] | None = None
) -> dict[str, tuple[object, object]]:
    """Make the plain attributes of one module follow the shapes of its own parameters and buffers.

    Shapes alone cannot tell a depthwise convolution with several outputs per channel that lost channels from one
    that lost some outputs of every channel; without ``keep`` the number of outputs per channel is taken to stay.

    Args:
        module: changed in place. Left as it is if it holds no tensor or its class has no row in the table.
        keep: the entries that stayed, as ``(local name, dim)``, counted in the old widths.
        values: this module's part of what ``known`` gives.

    Returns:
        Attribute -> (old value, new value), for those that changed.

    Raises:
        UncoupledChannelsError: if the shapes fit no number of convolution (or normalisation) groups.

    Example:
        >>> conv = torch.nn.Conv2d(3, 8, 1)
        >>> conv.weight = torch.nn.Parameter(torch.zeros(6, 3, 1, 1))
        >>> follow_shapes(conv)
        {'out_channels': (8, 6)}
    """
    changes = attribute_changes(module, keep or {}, values or {})
    for attribute, (_, new) in changes.items():
        setattr(module, attribute, new)
    return changes


def attribute_changes(
    module: nn.Module, keep: Mapping[Axis, Tensor], values: Mapping[str, int]
) -> dict[str, tuple[object, object]]:
    """What :func:`follow_shapes` would do, without doing it."""
    rule = rule_of(module)
    holds_any = next(chain(module.parameters(), module.buffers()), None) is not None
    wanted: Mapping[str, object]
    if isinstance(module, _ConvNd) and "groups" in values:
        wanted = _of_groups(module, values["groups"])
    elif isinstance(module, nn.GroupNorm) and "num_groups" in values:
        # Without affine parameters it has no shape of its own.
        per_group = module.num_channels // module.num_groups
        wanted = {"num_channels": per_group * values["num_groups"], **values}
    elif HEAD_WIDTH in values:
        wanted = heads_left(module, values)
    else:
        wanted = {**(rule(module, keep) if rule and holds_any else {}), **values}
    wanted = _listed(module, wanted)
    # What a class of ours keeps beyond the stock one's attributes is not there yet.
    old = {name: getattr(module, name, None) for name in wanted}
    return {name: (old[name], new) for name, new in wanted.items() if old[name] != new}


def _listed(module: nn.Module, wanted: Mapping[str, object]) -> dict[str, object]:
    """Return the same with ``sizes[0]``, ``info[1]['width']`` ... as one new list ``sizes``, one new ``info``."""
    whole: dict[str, object] = {}
    for attribute, value in wanted.items():
        name, steps = split_path(attribute)
        if not steps:
            whole[name] = value
        elif get_number(module, attribute) != value:
            whole[name] = replaced(whole.get(name, getattr(module, name)), steps, value)
    return whole


def rule_of(module: nn.Module) -> AttributeRule | None:
    """The row of the module's class or of its nearest ancestor that has one."""
    for cls in type(module).__mro__:
        if rule := _RULES.get(cls) or _NAMED.get(f"{cls.__module__}.{cls.__qualname__}"):
            return rule
    return None


def _of_groups(module: _ConvNd, groups: int) -> Mapping[str, object]:
    _, (out, per_group, *_) = _held(module, "weight")
    return {"out_channels": out, "in_channels": per_group * groups, "groups": groups}


def _convolution(module: nn.Module, keep: Mapping[Axis, Tensor]) -> Mapping[str, object]:
    assert isinstance(module, _ConvNd)
    name, (out, per_group, *_) = _held(module, "weight")
    groups = _groups_left(
        module, module.groups, module.out_channels, out, keep.get((name, 0)), module.groups == module.in_channels
    )
    return {"out_channels": out, "in_channels": per_group * groups, "groups": groups}


def _transposed_convolution(module: nn.Module, keep: Mapping[Axis, Tensor]) -> Mapping[str, object]:
    assert isinstance(module, _ConvTransposeNd)
    name, (into, per_group, *_) = _held(module, "weight")
    groups = _groups_left(
        module, module.groups, module.in_channels, into, keep.get((name, 0)), module.groups == module.in_channels
    )
    return {"in_channels": into, "out_channels": per_group * groups, "groups": groups}


def _group_norm(module: nn.Module, keep: Mapping[Axis, Tensor]) -> Mapping[str, object]:
    assert isinstance(module, nn.GroupNorm)
    name, (channels,) = _held(module, "weight")
    groups = _groups_left(
        module,
        module.num_groups,
        module.num_channels,
        channels,
        keep.get((name, 0)),
        module.num_groups == module.num_channels,
    )
    return {"num_channels": channels, "num_groups": groups}


def _groups_left(module: nn.Module, groups: int, old: int, new: int, kept: Tensor | None, one_each: bool) -> int:
    """How many of ``groups`` equal blocks of one dimension are left, with as many entries in each.

    ``one_each``: every group reads one channel, so that where only shapes are known, whole groups have gone.
    """
    if groups == 1:
        return 1
    left = new // (old // groups) if one_each else groups
    if kept is not None:
        counts = torch.bincount(kept.cpu() // (old // groups), minlength=groups)
        counts = counts[counts > 0]
        left = len(counts) if bool((counts == counts[0]).all()) else 0
    if left == 0 or new % left:
        raise UncoupledChannelsError(
            f"{module} has {groups} groups over {old} channels, of which {new} stay, and not as many of each group; "
            "remove equally many from every group, or ignore the layer"
        )
    return left


def _held(module: nn.Module, *names: str) -> tuple[str, tuple[int, ...]]:
    """Local name and shape of the first of these tensors that the module holds, however it stores it."""
    own = dict(chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False)))
    for name in names:
        # `_orig` and `_v`: what the hooks of torch.nn.utils.prune and of the old weight_norm compute `name` from.
        for spelling in (name, f"{name}_orig", f"{name}_v"):
            if spelling in own:
                return spelling, tuple(own[spelling].shape)
        if is_parametrized(module, name):
            return _original(module.get_submodule(f"parametrizations.{name}"), name)
    raise UncoupledChannelsError(f"{module} holds none of {', '.join(names)}; register_attributes a rule for its class")


def _original(originals: nn.Module, name: str) -> tuple[str, tuple[int, ...]]:
    # Not by reading `module.weight`: that runs the parametrization, and spectral_norm would take a power step.
    held = dict(chain(originals.named_parameters(recurse=False), originals.named_buffers(recurse=False)))
    largest = max(held, key=lambda n: held[n].numel())
    return f"parametrizations.{name}.{largest}", tuple(torch.broadcast_shapes(*(t.shape for t in held.values())))


def _sizes(tensors: tuple[str, ...], *attributes: str | None) -> AttributeRule:
    """The row of a module whose attributes are the sizes of one tensor; None skips a dimension."""

    def rule(module: nn.Module, keep: Mapping[Axis, Tensor]) -> Mapping[str, object]:
        shape = _held(module, *tensors)[1]
        return {name: size for name, size in zip(attributes, shape, strict=False) if name}

    return rule


def _normalized_shape(module: nn.Module, keep: Mapping[Axis, Tensor]) -> Mapping[str, object]:
    return {"normalized_shape": _held(module, "weight")[1]}


def _recurrent(module: nn.Module, keep: Mapping[Axis, Tensor]) -> Mapping[str, object]:
    _, (made, read) = _held(module, "weight_ih_l0", "weight_ih")
    own = dict(module.named_parameters(recurse=False))
    state = own.get("weight_hh_l0", own.get("weight_hh"))
    if state is None:  # computed from other parameters, by a weight norm for example; its units stay
        return {"input_size": read}
    if isinstance(module, nn.LSTM) and module.proj_size:
        return {"input_size": read, "hidden_size": made // 4, "proj_size": state.shape[1]}
    return {"input_size": read, "hidden_size": state.shape[1]}


def _attention(module: nn.Module, keep: Mapping[Axis, Tensor]) -> Mapping[str, object]:
    return heads_left(module)


_NAMED: dict[str, AttributeRule] = {
    "torch.nn.modules.activation.MultiheadAttention": _attention,
    "torchvision.ops.deform_conv.DeformConv2d": _sizes(("weight",), "out_channels", "in_channels"),
    "torchvision.models.swin_transformer.ShiftedWindowAttention": _attention,
    "torchvision.models.video.swin_transformer.ShiftedWindowAttention3d": _attention,
    "torchvision.models.maxvit.RelativePositionalMultiHeadAttention": _attention,
}
"""The same by the class's name, for those that are only imported when somebody uses them."""

_RULES: dict[type[nn.Module], AttributeRule] = {
    _ConvNd: _convolution,
    _ConvTransposeNd: _transposed_convolution,
    _NormBase: _sizes(("weight", "running_mean"), "num_features"),
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _normalized_shape,
    nn.RMSNorm: _normalized_shape,
    nn.PReLU: _sizes(("weight",), "num_parameters"),
    nn.Linear: _sizes(("weight",), "out_features", "in_features"),
    nn.Bilinear: _sizes(("weight",), "out_features", "in1_features", "in2_features"),
    nn.Embedding: _sizes(("weight",), "num_embeddings", "embedding_dim"),
    nn.EmbeddingBag: _sizes(("weight",), "num_embeddings", "embedding_dim"),
    nn.RNNBase: _recurrent,
    nn.RNNCellBase: _recurrent,
}
