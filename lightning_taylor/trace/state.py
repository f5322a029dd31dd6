"""What a trace knows while it runs, and one operator call as its rule sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lightning_taylor.graph.types import Axis, Operation
from lightning_taylor.modules.attribute_paths import numbers_in
from lightning_taylor.modules.attributes import rule_of
from lightning_taylor.trace.constraints import Constraints
from lightning_taylor.trace.constraints.attribute_sizes import may_count
from lightning_taylor.trace.labels import Labels
from lightning_taylor.trace.operator_call import OperatorCall
from lightning_taylor.trace.partition import LabelPartition

__all__ = [
    "Call",
    "Rule",
    "TraceState",
]


class TraceState:
    """What the rules of the operators read and write: which labels a tensor carries, and what was learnt so far.

    Args:
        partition: where ties, freezes, roles and costs are written.
        constraints: where what ties cannot say is written.
        names: id of each parameter and buffer -> its first qualified name.
        examples: how many examples the forward pass gets; None leaves costs unrecorded.
        modules: qualified name -> module of the copy, whose attributes may count what a trace finds.
        uncounted: names of the modules whose operations are not the network's.
    """

    def __init__(
        self,
        partition: LabelPartition,
        constraints: Constraints,
        names: dict[int, str],
        examples: int | None = None,
        modules: Mapping[str, nn.Module] | None = None,
        uncounted: frozenset[str] = frozenset(),
    ) -> None:
        self.partition = partition
        self.module = ""
        self.pairs, self.grids, self.splits, self.statistics, self.told = constraints
        self.first_states: dict[tuple[tuple[str, str], ...], Tensor] = {}
        self.examples = examples
        self._names = names
        self._modules = modules or {}
        self.told.begin(self._modules)
        self._inside: dict[str, Mapping[str, int]] = {}
        self.uncounted = uncounted
        # Strong references on purpose: an id must not be given to another tensor during the trace, and weak ones
        # do not survive the round trip of a tensor's Python object through a composite operator.
        self._carried: dict[int, tuple[Tensor, Labels | None]] = {}
        self._frozen_if_used: dict[int, tuple[Tensor, Tensor, str]] = {}

    def labels_of(self, tensor: Tensor) -> Labels | None:
        """Return what a tensor carries, or None."""
        known = self._carried.get(id(tensor))
        if known is not None:
            return known[1]
        name = self._names.get(id(tensor))
        if name is None:
            return None
        self.partition.seen.add(name)
        slots = self.partition.labels(name)
        labels = Labels(slots, weight=True) if slots else None
        self._carried[id(tensor)] = (tensor, labels)
        return labels

    def carry(self, tensor: Tensor, labels: Labels | None) -> None:
        """Note what a tensor carries from here on."""
        self._carried[id(tensor)] = (tensor, labels)

    def freeze_if_used(self, tensor: Tensor, labels: Tensor, reason: str) -> None:
        """Freeze these labels if anything is made of the tensor: attention weights are averaged, and often dropped."""
        self._frozen_if_used[id(tensor)] = (tensor, labels, reason)

    def mark_used(self, tensor: Tensor) -> None:
        """Note that something is made of a tensor; see ``freeze_if_used``."""
        _, labels, reason = self._frozen_if_used.pop(id(tensor), (tensor, None, ""))
        if labels is not None:
            self.partition.freeze(labels, reason)

    def freeze(self, labels: Labels | None, reason: str) -> None:
        """Freeze everything that a tensor carries."""
        for slot in labels.slots if labels else ():
            self.partition.freeze(slot, reason)

    def name_layer(self, labels: Tensor) -> None:
        """Note the layer whose weight these labels belong to, and the axis that carries its output channels."""
        for axis in self.partition.axes_of(labels):
            layer = axis[0].rpartition(".")[0].partition(".parametrizations")[0]
            if self.partition.layers.setdefault(layer, axis) != axis:
                self.partition.layers.setdefault(axis[0], axis)

    @property
    def kind(self) -> str:
        """The class of the running module: what the same code does goes by one decision."""
        return f"{type(self.running).__module__}.{type(self.running).__qualname__}" if self.running is not None else ""

    @property
    def running(self) -> nn.Module | None:
        """The innermost module that runs."""
        return self._modules.get(self.module)

    def holds(self, attribute: str, value: int) -> bool:
        """Return whether the running module keeps this number under this name."""
        return vars(self._modules.get(self.module, nn.Module())).get(attribute) == value

    def kind_of(self, module: str) -> str:
        """The class of a module, by its qualified name."""
        kind = type(self._modules[module])
        return f"{kind.__module__}.{kind.__qualname__}"

    def counting_around(self, number: int) -> tuple[tuple[str, str], ...]:
        """Like ``counting``, of the innermost module that has any: the running one, or one around it."""
        name = self.module
        while True:
            module = self._modules.get(name)
            own = {} if module is None or rule_of(module) is not None else vars(module)
            found = [n for n, value in own.items() if may_count(n) and type(value) is int and value == number]
            if found or not name:
                return tuple((name, attribute) for attribute in found)
            name = name.rpartition(".")[0]

    def counting(self, number: int) -> list[tuple[str, str]]:
        """Return the running module and those of its attributes that are this whole number."""
        return [(self.module, name) for name, value in self.held().items() if type(value) is int and value == number]

    def counting_inside(self, number: int) -> list[tuple[str, str]]:
        """Like ``counting``, of paths to numbers inside of the attributes: of lists, tuples and dicts."""
        if self.module not in self._inside:
            running = self.running
            found = numbers_in(running) if running is not None and rule_of(running) is None else {}
            own = {path: entry.value for path, entry in found.items() if "[" in path and may_count(path)}
            self._inside[self.module] = own
        return [(self.module, path) for path, value in self._inside[self.module].items() if value == number]

    def held(self) -> Mapping[str, Any]:
        """Return what the running module may count channels by; nothing if the rule of its class says what follows."""
        attributes = {} if self.running is None or rule_of(self.running) is not None else vars(self.running)
        return {name: value for name, value in attributes.items() if may_count(name)}

    def record(self, call: Call, axes: Iterable[Axis], share: float = 1.0) -> None:
        """Write down an operation's cost, on the pass that counts it."""
        if call.flops and self.examples and self.module not in self.uncounted:
            flops = round(call.flops * share) // self.examples
            self.partition.operations.append(Operation(self.module, call.name, flops, tuple(axes)))


@dataclass(frozen=True, eq=False)
class Call(OperatorCall):
    """One operator call as its rule sees it: with what its tensors carry.

    Attributes:
        state: what the trace knows.
        flops: what the call costs, if this pass counts it.
    """

    state: TraceState
    flops: int = 0

    @property
    def where(self) -> str:
        """As for any call; and that it is not of the network, where it is not."""
        outside = self.module and self.module in self.state.uncounted
        return f"{super().where}{', outside of the network' if outside else ''}"

    def labels(self, name: str) -> Labels | None:
        """Return what an argument carries, or None."""
        value = self.get(name)
        return self.state.labels_of(value) if isinstance(value, Tensor) else None

    def cost(self, axes: Sequence[Axis], share: float = 1.0) -> None:
        """Record a share of the operation's FLOPs as proportional to the widths of these axes."""
        self.state.record(self, dict.fromkeys(axes), share)


Rule = Callable[[Call], "Labels | Sequence[Labels | None] | None"]
