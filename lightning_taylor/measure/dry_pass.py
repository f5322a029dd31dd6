"""Forward passes without data: which operators a network of some widths runs, and how many bytes are alive.

They run on the device "meta", where tensors have shapes and nothing else. A pass of ResNet-50 takes a tenth of a second
there, whatever its batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_taylor.graph.types import LinkedAttribute
from lightning_taylor.measure.memory import byte_curve
from lightning_taylor.measure.network_only import tensors_of_network
from lightning_taylor.modules.resize import with_shapes
from lightning_taylor.utilities.calls import ForwardCall, copied_like, moved, runner, tensors_in, with_examples

__all__ = [
    "DryPass",
    "OperatorCall",
    "TensorSpec",
]

_META = torch.device("meta")


@dataclass(frozen=True)
class TensorSpec:
    """What an operator's time depends on: a tensor without its numbers.

    Attributes:
        shape: its sizes.
        dtype: of its entries.
        order: its dimensions from the slowest to the fastest in memory, as ``channels_last`` or a transposition has
            them in an order of its own.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    order: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> TensorSpec:
        """Describe a tensor."""
        dims = range(tensor.ndim)
        order = dims if tensor.is_contiguous() else sorted(dims, key=lambda d: -tensor.stride(d))
        return cls(tuple(tensor.shape), tensor.dtype, tuple(order))

    def tensor(self, device: torch.device) -> Tensor:
        """Make a tensor of this kind: of ones, or of zeros where it may hold indices, which are then legal."""
        stored = [self.shape[d] for d in self.order]
        fill = 1 if self.dtype.is_floating_point else 0
        made = torch.full(stored, fill, dtype=self.dtype, device=device)
        return made.permute([self.order.index(d) for d in range(len(self.shape))])

    @property
    def entries(self) -> int:
        """How many numbers it has."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class OperatorCall:
    """One call of an operator, with specs where it had tensors.

    Attributes:
        func: the operator.
        leaves: its arguments, flattened.
        structure: how they were nested.
    """

    func: Any
    leaves: tuple[Any, ...]
    structure: Any

    @property
    def specs(self) -> list[TensorSpec]:
        """What its tensors are like, in order."""
        return [leaf for leaf in self.leaves if isinstance(leaf, TensorSpec)]

    @property
    def key(self) -> tuple[str, str]:
        """What calls that take equally long have in common."""
        return str(self.func), repr(self.leaves)

    def on(self, device: torch.device) -> Callable[[], Any]:
        """Make its arguments on a device, and return a function that calls it with them."""
        made = [leaf.tensor(device) if isinstance(leaf, TensorSpec) else leaf for leaf in self.leaves]
        made = [device if isinstance(leaf, torch.device) else leaf for leaf in made]
        args, kwargs = pytree.tree_unflatten(made, self.structure)
        return lambda: self.func(*args, **kwargs)


@final
class DryPass:
    """Makes forward passes of one network at any widths.

    An attention runs the code that every device has, and keeps its matrix; that of the network's device may not.

    Args:
        net: at any widths, in evaluation mode; copied.
        calls: what it is called with.
        batch: examples per pass, see ``with_examples``; those of ``calls`` if None.
        followers: as ``ChannelGraph.followers``.
        beside: names of modules whose tensors do not count.

    Raises:
        Exception: from a pass, whatever a network raises that needs numbers to know what to do next, as detectors do.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
        >>> dry = DryPass(net, [ForwardCall("", (torch.rand(1, 4),))], batch=32)
        >>> operators, bytes_alive = dry({"0.weight": (6, 4), "0.bias": (6,), "2.weight": (2, 6)})
        >>> [str(call.func) for call in operators]
        ['aten.addmm.default', 'aten.relu.default', 'aten.addmm.default']
        >>> max(bytes_alive) - bytes_alive[0] == 2 * 32 * 6 * 4  # the ReLU's input and output
        True
    """

    def __init__(
        self,
        net: nn.Module,
        calls: Sequence[ForwardCall],
        batch: int | None = None,
        followers: Iterable[LinkedAttribute] = (),
        beside: Collection[str] = (),
    ) -> None:
        like = next(net.parameters())
        self._net = _without_data(net)
        whole = copied_like(with_examples(calls, batch) if batch else calls, like)
        self._calls = [ForwardCall(c.module, moved(c.args, _META), moved(dict(c.kwargs), _META)) for c in whole]
        self._followers = tuple(followers)
        self._beside = frozenset(beside)
        self._known: dict[Any, Any] = {}

    @property
    def entry_bytes(self) -> float:
        """How many bytes an entry of a parameter or buffer takes, on average."""
        parameters = tensors_of_network(self._net, self._beside)
        entries = sum(p.numel() for p in parameters)
        return sum(p.numel() * p.element_size() for p in parameters) / max(1, entries)

    def __call__(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[list[OperatorCall], list[int]]:
        """Make a pass of the network with these shapes.

        Args:
            shapes: as ``ChannelGraph.shapes``.

        Returns:
            The operators that make new tensors, and the bytes alive as from ``byte_curve``.
        """
        net = with_shapes(self._net, shapes, self._followers)
        inputs = tensors_in([(c.args, dict(c.kwargs)) for c in self._calls])
        with torch.no_grad(), _Listener(self._known) as listener:
            curve = byte_curve(runner(net, self._calls), [*tensors_of_network(net, self._beside), *inputs])
        return listener.operators, curve


def _without_data(net: nn.Module) -> nn.Module:
    """Copy a module to the device "meta"; what is tied stays tied, which ``Module.to`` would undo."""
    copies: dict[int, Any] = {}
    for tensor in chain(net.parameters(), net.buffers()):
        empty = tensor.detach().to(_META)
        copies[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(net, copies)


class _Listener(TorchDispatchMode):
    """Notes every operator that does not only look at its input in another way.

    On the device "meta" most operators are Python code of many steps. What one gave for tensors of some kinds, it gives
    again.
    """

    def __init__(self, known: dict[Any, Any]) -> None:
        super().__init__()
        self.operators: list[OperatorCall] = []
        self._known = known

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.is_view:
            return func(*args, **(kwargs or {}))
        leaves, structure = pytree.tree_flatten((args, kwargs or {}))
        specs = tuple(TensorSpec.of(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        self.operators.append(OperatorCall(func, specs, structure))
        written = [a for a in func._schema.arguments if a.alias_info is not None]
        if written:
            # In place there is no number to write; what comes back is what went in.
            in_place = len(written) == 1 and written[0].name == "self" and len(func._schema.returns) == 1
            return args[0] if in_place else func(*args, **(kwargs or {}))
        key = self.operators[-1].key
        if (known := self._known.get(key)) is not None:
            return _mapped(TensorSpec, known, lambda spec: spec.tensor(_META))
        out = func(*args, **(kwargs or {}))
        # Some hand a tensor on that looks new and lies where their input lies: those run each time.
        if not _storages(out) & _storages(leaves):
            self._known[key] = _mapped(Tensor, out, TensorSpec.of)
        return out


def _storages(values: Any) -> set[int]:
    return {leaf.untyped_storage()._cdata for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)}


def _mapped(kind: type, values: Any, change: Callable[[Any], Any]) -> Any:
    """Change everything of one kind in nested containers."""
    return pytree.tree_map(lambda leaf: change(leaf) if isinstance(leaf, kind) else leaf, values)
