"""The dispatch mode that carries labels beside the data, operator by operator.

How it could fail, and where that is caught: a label is lost (an operator is taken for neutral) or two labels are not
tied that should be. Then the removal of one channel either raises or changes the output, and the proof by trial
(``verify``) freezes the family. Whatever this module does not know, it freezes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from lightning_taylor.trace.foreach import is_foreach, run_one_by_one
from lightning_taylor.trace.labels import Labels, tells_all
from lightning_taylor.trace.operator_call import operator_name, qualified_name
from lightning_taylor.trace.partition import NEUTRAL
from lightning_taylor.trace.reasons import Why
from lightning_taylor.trace.state import Call, Rule, TraceState
from lightning_taylor.utilities.calls import tensors_in

__all__ = [
    "Tracer",
]

_FACTORIES = {"zeros", "ones", "empty", "full", "new_zeros", "new_ones", "new_empty", "new_full", "empty_strided"}

_FORMULAS: dict[str, Callable[..., int]] = {
    "torchvision::deform_conv2d": lambda x, weight, *_, out_shape, **__: conv_flop_count(x, weight, out_shape),
}
"""FLOPs by the shapes of arguments and outcome, for operators that torch's counter does not know."""

_LARGEST_WRITABLE = 1 << 25


class Tracer(TorchDispatchMode):
    """Runs operators and, beside each, its rule on the labels of what went in.

    Args:
        state: what the rules read and write.
        find_rule: operator -> its rule, and whether that can deal with channels along several dimensions of an
            activation; None for an operator that nothing is known of.
    """

    def __init__(
        self,
        state: TraceState,
        find_rule: Callable[[Any], tuple[Rule, bool] | None],
    ) -> None:
        super().__init__()
        self.state = state
        self._find_rule = find_rule

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, then follow it with labels."""
        kwargs = kwargs or {}
        if is_foreach(func):
            with self:
                return run_one_by_one(func, args, kwargs)
        given = list(tensors_in((args, kwargs)))
        with _labels_only():
            self.state.statistics.next_call(operator_name(func))
            for tensor in given:
                self.state.mark_used(tensor)
            carries = any(self.state.labels_of(t) is not None for t in given)
        out, flops = self._run(func, args, kwargs)
        with _labels_only():
            call = Call(func, args, kwargs, out, self.state.module, self.state, flops)
            # What `x.new_zeros` makes has nothing of x.
            if carries and operator_name(func) not in _FACTORIES:
                self._follow(call)
            else:
                self._remember_factory(func, out)
                self.state.record(call, ())
            self.state.statistics.propagate(call, self.state.labels_of)
        return out

    def _run(self, func: Any, args: Any, kwargs: Any) -> tuple[Any, int]:
        if self.state.examples is None or torch.Tag.pointwise in func.tags or func.is_view:
            return func(*args, **kwargs), 0
        formula = _FORMULAS.get(qualified_name(func._schema.name))
        own: dict[Any, Any] = {func.overloadpacket: formula} if formula else {}
        with FlopCounterMode(display=False, custom_mapping=own) as counter:
            out = func(*args, **kwargs)
        return out, counter.get_total_flops()

    def _follow(self, call: Call) -> None:
        rule, several_axes = self._find_rule(call.func) or (_unknown, False)
        if not several_axes and any(_arranged(self.state.labels_of(t)) for t in call.operands):
            rule = _unknown
        result = rule(call)
        # One label for several outputs is that of the first.
        results: Sequence[Labels | None] = (result,) if result is None or isinstance(result, Labels) else result
        for tensor, labels in zip(tensors_in(call.out), results, strict=False):
            if any(tensor is given for given in call.operands):
                self._write(call, tensor, labels)
            else:
                self.state.carry(tensor, labels)

    def _write(self, call: Call, tensor: Tensor, labels: Labels | None) -> None:
        """An operator wrote into one of its arguments: its labels change in place, so that views see it too."""
        old = self.state.labels_of(tensor)
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
            self.state.freeze(labels, Why.WRITTEN_PART(call.where))
            self.state.freeze(old, Why.OVERWRITTEN(call.where))
            return
        self.state.carry(tensor, labels)

    def _remember_factory(self, func: Any, out: Any) -> None:
        """A fresh tensor may be written into piece by piece: give it labels that can be written likewise."""
        fresh = isinstance(out, Tensor) and operator_name(func) in _FACTORIES and out.is_floating_point()
        if fresh and 1 < out.numel() <= _LARGEST_WRITABLE:
            self.state.carry(out, Labels((torch.full(out.shape, NEUTRAL, dtype=torch.int64),)))


def _labels_only() -> AbstractContextManager[Any]:
    """Keep function modes (what a trace makes of the model's calls) from handling every step of work on labels."""
    return torch._C.DisableTorchFunction()


def _arranged(labels: Labels | None) -> bool:
    """Return whether an activation carries channels along several of its dimensions."""
    return labels is not None and not labels.weight and len(labels.slots) > 1


def _unknown(call: Call) -> None:
    for tensor in call.operands:
        call.state.freeze(call.state.labels_of(tensor), Why.NO_RULE(call.where))
