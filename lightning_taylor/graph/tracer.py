"""The dispatch mode that carries labels beside the data, operator by operator.

How it could fail, and where that is caught: a label is lost (an operator is taken for neutral) or two labels are not
tied that should be. Then the removal of one channel either raises or changes the output, and the proof by trial
(``verify``) freezes the family. Whatever this module does not know, it freezes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lightning_taylor.graph.averages import Averages
from lightning_taylor.graph.labels import Labels, tells_all
from lightning_taylor.graph.ledger import NEUTRAL, Ledger
from lightning_taylor.graph.lines import running_line
from lightning_taylor.graph.sizes import may_count
from lightning_taylor.graph.types import Axis, Operation
from lightning_taylor.modules.attributes import rule_of
from lightning_taylor.utilities.calls import tensors_in

__all__ = [
    "Call",
    "Rule",
    "Tracer",
]

_FACTORIES = {"zeros", "ones", "empty", "full", "new_zeros", "new_ones", "new_empty", "new_full", "empty_strided"}

_LARGEST_WRITABLE = 1 << 25


@dataclass(frozen=True, eq=False)
class Call:
    """One operator call: its arguments by name, what it returned, and where it happened."""

    tracer: Tracer
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    flops: int = 0

    @property
    def name(self) -> str:
        """The operator without namespace, overload and in-place underscore: ``relu`` for ``aten::relu_``."""
        return operator_name(self.func)

    @property
    def where(self) -> str:
        """The operator, the module that ran it and the line of the model's code, for reasons in words."""
        return f"{self.name} in {self.tracer.module or 'the model itself'}{running_line()}"

    @property
    def place(self) -> tuple[str, str]:
        """The operator and the module, whichever line it is: what stands for all its calls."""
        return self.name, self.tracer.module

    def get(self, name: str) -> Any:
        """An argument by its schema name, with the schema's default."""
        if name in self.kwargs:
            return self.kwargs[name]
        for value, argument in zip(self.args, self.func._schema.arguments, strict=False):
            if argument.name == name:
                return value
        for argument in self.func._schema.arguments:
            if argument.name == name and argument.has_default_value():
                return argument.default_value
        return None

    def labels(self, name: str) -> Labels | None:
        """What an argument carries, or None."""
        value = self.get(name)
        return self.tracer.labels_of(value) if isinstance(value, Tensor) else None

    @property
    def operands(self) -> list[Tensor]:
        """Every tensor argument, in order."""
        return list(tensors_in((self.args, self.kwargs)))

    def cost(self, axes: Sequence[Axis], share: float = 1.0) -> None:
        """Record a share of the operation's FLOPs as proportional to the widths of these axes."""
        self.tracer.record(self, dict.fromkeys(axes), share)


Rule = Callable[[Call], "Labels | Sequence[Labels | None] | None"]


def operator_name(func: Any) -> str:
    """``relu`` for ``aten::relu_``, ``roi_align`` for ``torchvision::roi_align``."""
    name = func._schema.name.split("::")[-1]
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


class Tracer(TorchDispatchMode):
    """Runs operators and, beside each, its rule on the labels of what went in.

    Args:
        ledger: where ties, freezes, roles and costs are written.
        names: id of each parameter and buffer -> its first qualified name.
        averages: where averages over channels are written.
        rules: operator name -> rule; a pointwise operator needs none.
        fallback: rule for pointwise operators and views, found by torch's own tags.
        examples: how many examples the forward pass gets; None leaves costs unrecorded.
        modules: qualified name -> module of the copy, whose attributes may count what a trace finds.
        several: the rules that can deal with channels along several dimensions of an activation.
    """

    def __init__(
        self,
        ledger: Ledger,
        names: dict[int, str],
        averages: Averages,
        rules: dict[str, Rule],
        fallback: Callable[[Any], Rule | None],
        examples: int | None,
        modules: Mapping[str, nn.Module] | None = None,
        several: frozenset[Rule] = frozenset(),
    ) -> None:
        super().__init__()
        self.ledger = ledger
        self.module = ""
        self.averages = averages
        self._names = names
        self._rules = rules
        self._fallback = fallback
        self._examples = examples
        self._modules = modules or {}
        self._several = several
        # Strong references on purpose: an id must not be given to another tensor during the trace, and weak ones
        # do not survive the round trip of a tensor's Python object through a composite operator.
        self._carried: dict[int, tuple[Tensor, Labels | None]] = {}
        self._mixed: dict[int, tuple[Tensor, Tensor, str]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, then follow it with labels."""
        kwargs = kwargs or {}
        self.averages.count(operator_name(func))
        for tensor in tensors_in((args, kwargs)):
            self.use(tensor)
        carries = any(self.labels_of(t) is not None for t in tensors_in((args, kwargs)))
        # What `x.new_zeros` makes has nothing of x.
        if not carries or operator_name(func) in _FACTORIES:
            out, flops = self._run(func, args, kwargs)
            self._remember_factory(func, out)
            call = Call(self, func, args, kwargs, out, flops)
            self.record(call, ())
            self.averages.follow(call)
            return out
        out, flops = self._run(func, args, kwargs)
        call = Call(self, func, args, kwargs, out, flops)
        self._follow(call)
        self.averages.follow(call)
        return out

    def labels_of(self, tensor: Tensor) -> Labels | None:
        """What a tensor carries, or None."""
        known = self._carried.get(id(tensor))
        if known is not None:
            return known[1]
        name = self._names.get(id(tensor))
        if name is None:
            return None
        self.ledger.seen.add(name)
        slots = self.ledger.labels(name)
        labels = Labels(slots, weight=True) if slots else None
        self._carried[id(tensor)] = (tensor, labels)
        return labels

    def carry(self, tensor: Tensor, labels: Labels | None) -> None:
        """Note what a tensor carries from here on."""
        self._carried[id(tensor)] = (tensor, labels)

    def mixed(self, tensor: Tensor, labels: Tensor, reason: str) -> None:
        """Freeze these labels if anything is made of the tensor: attention weights are averaged, and often dropped."""
        self._mixed[id(tensor)] = (tensor, labels, reason)

    def use(self, tensor: Tensor) -> None:
        """Something is made of a tensor."""
        if (found := self._mixed.pop(id(tensor), None)) is not None:
            self.ledger.freeze(found[1], found[2])

    def freeze(self, labels: Labels | None, reason: str) -> None:
        """Freeze everything that a tensor carries."""
        for slot in labels.slots if labels else ():
            self.ledger.freeze(slot, reason)

    def name_layer(self, labels: Tensor) -> None:
        """Note the layer whose weight these labels belong to, and the axis that carries its output channels."""
        for axis in self.ledger.axes_of(labels):
            layer = axis[0].rpartition(".")[0].partition(".parametrizations")[0]
            if self.ledger.layers.setdefault(layer, axis) != axis:
                self.ledger.layers.setdefault(axis[0], axis)

    @property
    def kind(self) -> str:
        """The class of the running module: what the same code does goes by one decision."""
        return f"{type(self.running).__module__}.{type(self.running).__qualname__}" if self.running is not None else ""

    @property
    def running(self) -> nn.Module | None:
        """The innermost module that runs."""
        return self._modules.get(self.module)

    def holds(self, attribute: str, value: int) -> bool:
        """Whether the running module keeps this number under this name."""
        return vars(self._modules.get(self.module, nn.Module())).get(attribute) == value

    def counting(self, number: int) -> list[tuple[str, str]]:
        """The running module and those of its attributes that are this whole number."""
        return [(self.module, name) for name, value in self.held().items() if type(value) is int and value == number]

    def held(self) -> Mapping[str, Any]:
        """What the running module may count channels by; nothing if the rule of its class says what follows."""
        own = {} if self.running is None or rule_of(self.running) is not None else vars(self.running)
        return {name: value for name, value in own.items() if may_count(name)}

    def record(self, call: Call, axes: Iterable[Axis], share: float = 1.0) -> None:
        """Write down an operation's cost, on the pass that counts it."""
        if call.flops and self._examples:
            flops = round(call.flops * share) // self._examples
            self.ledger.operations.append(Operation(self.module, call.name, flops, tuple(axes)))

    def _run(self, func: Any, args: Any, kwargs: Any) -> tuple[Any, int]:
        if self._examples is None or torch.Tag.pointwise in func.tags or func.is_view:
            return func(*args, **kwargs), 0
        with FlopCounterMode(display=False) as counter:
            out = func(*args, **kwargs)
        return out, counter.get_total_flops()

    def _follow(self, call: Call) -> None:
        rule = self._rules.get(call.name) or self._fallback(call.func) or _unknown
        if rule not in self._several and any(_arranged(self.labels_of(t)) for t in call.operands):
            rule = _unknown
        result = rule(call)
        # One label for several outputs is that of the first.
        results: Sequence[Labels | None] = (result,) if result is None or isinstance(result, Labels) else result
        for tensor, labels in zip(tensors_in(call.out), results, strict=False):
            if any(tensor is given for given in call.operands):
                self._write(call, tensor, labels)
            else:
                self.carry(tensor, labels)

    def _write(self, call: Call, tensor: Tensor, labels: Labels | None) -> None:
        """An operator wrote into one of its arguments: its labels change in place, so that views see it too."""
        old = self.labels_of(tensor)
        if labels is None or labels is old:
            return
        if (
            old is not None
            and (torch.Tag.pointwise in call.func.tags or call.name == "copy")
            and tells_all(old, labels)
        ):
            return
        if old is not None and len(old.slots) == 1 and len(labels.slots) == 1:
            here, new = old.slots[0], labels.slots[0]
            if torch.equal(here, new):
                return
            if not any(n > 1 and s == 0 for n, s in zip(here.shape, here.stride(), strict=True)):
                here.copy_(new)
                return
        if tensor._is_view():
            # The base cannot be told, its labels are not materialised; what is frozen need not be followed.
            self.freeze(labels, f"written into a part of another tensor ({call.where})")
            self.freeze(old, f"part of it is overwritten ({call.where})")
            return
        self.carry(tensor, labels)

    def _remember_factory(self, func: Any, out: Any) -> None:
        """A fresh tensor may be written into piece by piece: give it labels that can be written likewise."""
        fresh = isinstance(out, Tensor) and operator_name(func) in _FACTORIES and out.is_floating_point()
        if fresh and 1 < out.numel() <= _LARGEST_WRITABLE:
            self.carry(out, Labels((torch.full(out.shape, NEUTRAL, dtype=torch.int64),)))


def _arranged(labels: Labels | None) -> bool:
    """Whether an activation carries channels along several of its dimensions."""
    return labels is not None and not labels.weight and len(labels.slots) > 1


def _unknown(call: Call) -> None:
    for tensor in call.operands:
        call.tracer.freeze(call.tracer.labels_of(tensor), f"no rule for {call.where}")
