"""Loading what was pruned: a model takes the shapes of the checkpoint before its values are copied in.

Lightning restores the model between ``setup`` and the creation of the optimizers, and calls the callbacks' own load
hooks only afterwards. So the shapes are fitted by a hook of torch's ``load_state_dict`` itself, placed in ``setup``;
optimizers and averaged copies then find the right sizes. The shapes come from the state dict, both ways: the best
checkpoint may be larger than the model in memory.

Which dimensions may differ travels with the state dict, as metadata, and with the callback's state. Every other
difference means that the checkpoint belongs to another model, and is an error that lists it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_taylor.checkpoint.version_1 import widths_of_version_1
from lightning_taylor.errors import UncoupledChannelsError
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import LinkedAttribute
from lightning_taylor.modules.attributes import follow_shapes, known
from lightning_taylor.modules.model_copy import named_tensors
from lightning_taylor.modules.resize import hold
from lightning_taylor.utilities.hooks import FunctionHook
from lightning_taylor.utilities.plain import from_plain, to_plain

__all__ = [
    "NO_STATE",
    "STATE_KEY",
    "ShapeFitter",
    "Widths",
    "fit_shapes",
    "origin_of",
    "was_pruned",
    "widths_of",
]

KEY = "lightning_taylor"
"""Of the entry in a state dict's metadata."""

STATE_KEY = "TaylorPruning"

NO_STATE = (
    "the checkpoint's network was pruned before, but the checkpoint holds no state of TaylorPruning: what the network "
    "has now counts as dense"
)
"""Of the callback's state in a checkpoint."""

VERSION = 2


@final
@dataclass(frozen=True)
class Widths:
    """What a checkpoint says about its widths, in the metadata of its state dict and in the callback's state.

    Attributes:
        dense: name of each tensor that pruning may cut -> its shape when the model was traced.
        dims: the same names -> the dimensions that channels are removed from.
        followers: the attributes of modules that follow the widths.
        version: of this format.
    """

    dense: Mapping[str, tuple[int, ...]]
    dims: Mapping[str, tuple[int, ...]]
    followers: tuple[LinkedAttribute, ...] = ()
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ValueError(f"widths of version {self.version}, this release reads {VERSION}")


def widths_of(graph: ChannelGraph | None) -> Widths:
    """Return the dense shapes, and the dimensions that channels are removed from; nothing of both without a graph."""
    if graph is None:
        return Widths({}, {})
    dims: dict[str, list[int]] = {}
    for name, dim in graph.slices_by_axis():
        dims.setdefault(name, []).append(dim)
    followed = (name for f in graph.followers for name, _ in f.axes)
    dense = {name: graph.dense[name] for name in dict.fromkeys([*dims, *followed])}
    return Widths(dense, {name: tuple(of) for name, of in dims.items()}, graph.followers)


def fit_shapes(module: nn.Module, state_dict: Mapping[str, Any], widths: Widths, prefix: str = "") -> None:
    """Give a module's tensors the shapes that a state dict has; their values are undefined until it is loaded.

    A no-op where all shapes agree, or where the state dict has other names (``load_state_dict`` says which). Tensors
    stay the same objects; their gradients are dropped.

    Args:
        module: changed in place.
        state_dict: name -> tensor.
        widths: as from ``widths_of``: which dimensions may differ, and the dense shapes.
        prefix: what the module's names begin with in the state dict.

    Raises:
        UncoupledChannelsError: if another dimension differs, or a dense one is smaller than the module's or the
            checkpoint's; nothing is changed.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 2))
        >>> small = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2)).state_dict()
        >>> dense = {"0.weight": (8, 3), "0.bias": (8,), "1.weight": (2, 8)}
        >>> fit_shapes(net, small, Widths(dense, {"0.weight": (0,), "0.bias": (0,), "1.weight": (1,)}))
        >>> net
        Sequential(
          (0): Linear(in_features=3, out_features=5, bias=True)
          (1): Linear(in_features=5, out_features=2, bias=True)
        )
    """
    living = dict(named_tensors(module))
    incoming = {name: state_dict[prefix + name] for name in living if prefix + name in state_dict}
    differing = {n: t for n, t in incoming.items() if isinstance(t, Tensor) and t.shape != living[n].shape}
    if not differing:
        return
    known_as = _known_names(living, widths)
    problems = [
        text
        for name in differing
        if (text := _misfit(name, living[name], differing[name], widths, known_as.get(id(living[name]), name)))
    ]
    if problems:
        raise UncoupledChannelsError(
            f"the checkpoint belongs to another {type(module).__name__}: {'; '.join(problems[:8])}"
            + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
            + ". Build the model as it was when the checkpoint's training began, before any pruning"
        )
    with torch.inference_mode(False), torch.no_grad():
        for name, tensor in differing.items():
            if living[name].shape != tensor.shape:  # tied tensors come once per name
                hold(living[name], _empty_like(living[name], tensor.shape))
                living[name].grad = None
    values = known(widths.followers, {name: tuple(t.shape) for name, t in living.items()})
    for name, part in module.named_modules():
        follow_shapes(part, values=values.get(name))


def _known_names(living: Mapping[str, Tensor], widths: Widths) -> dict[int, str]:
    """Map the id of a living tensor to the one of its names that the widths know: those of a shared module are many."""
    return {id(tensor): name for name, tensor in reversed(list(living.items())) if name in widths.dense}


def _misfit(name: str, living: Tensor, incoming: Tensor, widths: Widths, known_as: str) -> str | None:
    """Why a tensor cannot take the shape of the incoming one; None if it can."""
    here, there = tuple(living.shape), tuple(incoming.shape)
    dense, dims = widths.dense.get(known_as), widths.dims.get(known_as, ())
    said = f"{name} has shape {here} here and {there} in the checkpoint"
    if len(here) != len(there) or any(
        a != b and d not in dims for d, (a, b) in enumerate(zip(here, there, strict=False))
    ):
        return said
    if dense and any(max(a, b) > c for a, b, c in zip(here, there, dense, strict=True)):
        return f"{said} ({tuple(dense)} before it was pruned)"
    return None


def _empty_like(tensor: Tensor, shape: torch.Size) -> Tensor:
    new = tensor.new_empty(shape)
    for ndim, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if tensor.ndim == ndim and tensor.is_contiguous(memory_format=layout) and not tensor.is_contiguous():
            new = new.contiguous(memory_format=layout)
    return new


@final
class ShapeFitter:
    """The hooks on a module's ``state_dict`` and ``load_state_dict``, until it is closed.

    A copy of a hooked module carries the same fitter: an averaged model that is made after ``setup`` is fitted too.

    Args:
        widths: what to write into a state dict's metadata.
        fallback: what to go by when a state dict has no metadata, since somebody rebuilt it; None if nobody knows.
    """

    def __init__(self, widths: Callable[[], Widths], fallback: Callable[[], Widths | None]) -> None:
        self._widths, self._fallback = widths, fallback
        self._on_save, self._on_load = _Hook(self._describe), _Hook(self._fit)
        self._handles: list[RemovableHandle] = []

    def watch(self, module: nn.Module) -> None:
        """Place the hooks on a module; a scripted one takes none, and cannot be pruned."""
        if isinstance(module, torch.jit.ScriptModule):
            return
        self._handles.append(module.register_state_dict_post_hook(self._on_save))
        self._handles.append(module.register_load_state_dict_pre_hook(self._on_load))

    def close(self) -> None:
        """Take the hooks off again; those on copies do nothing from here on."""
        self._on_save.run = self._on_load.run = None
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _describe(self, module: nn.Module, state_dict: Any, prefix: str, local_metadata: dict[str, Any]) -> None:
        local_metadata[KEY] = to_plain(self._widths())

    def _fit(self, module: nn.Module, state_dict: Any, prefix: str, local_metadata: dict[str, Any], *_: Any) -> None:
        saved = _read(local_metadata.get(KEY)) or self._fallback()
        if saved is not None:
            fit_shapes(module, state_dict, _either(saved, self._widths()), prefix)


class _Hook(FunctionHook):
    """A function that is not copied with the module it hangs on, and left out when that is pickled."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        return self


def _either(saved: Widths, own: Widths) -> Widths:
    """A checkpoint from before the trace knows no widths; the model in memory may be pruned since."""
    return saved if saved.dims else own


def was_pruned(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a checkpoint says of itself that its model had more channels once."""
    state, widths = checkpoint["state_dict"], origin_of(checkpoint)
    dense = widths.dense if widths else {}
    return any(tuple(state[name].shape) != shape for name, shape in dense.items() if name in state)


def _read(plain: Any) -> Widths | None:
    if plain is None:
        return None
    try:
        return from_plain(Widths, plain if "version" in plain else widths_of_version_1(plain))
    except (TypeError, AttributeError, ValueError) as error:
        raise UncoupledChannelsError(
            "what the checkpoint says about its widths cannot be read: it is damaged, or was written by another "
            f"release ({error})"
        ) from error


def origin_of(checkpoint: Mapping[str, Any]) -> Widths | None:
    """What a whole checkpoint says about its widths: from the metadata of its state dict, or the callback's state."""
    metadata = getattr(checkpoint.get("state_dict"), "_metadata", None) or {}
    described = metadata.get("", {}).get(KEY)
    if described is None:
        described = checkpoint.get("callbacks", {}).get(STATE_KEY, {}).get("widths")
    return _read(described)
