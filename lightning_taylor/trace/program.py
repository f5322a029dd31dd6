"""What a trace runs: the forward calls of a training step, and the step itself where it can be made again.

A step says more than its calls: what passes between two of them, what a hook or an attribute carries to the loss, and
what the loss reads. The calls are what is left where a step cannot run on a copy of its module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import nn

from lightning_taylor.utilities.calls import (
    ForwardCall,
    batch_size,
    cast,
    cast_call,
    disturb_examples,
    few_examples,
    few_of,
)

__all__ = ["Program", "Step"]

_FRAMEWORKS = {"torch", "lightning", "pytorch_lightning"}


@dataclass(frozen=True, eq=False)
class Step:
    """A training step that can be made again.

    Attributes:
        run: takes a copy of the module and a batch, and returns what the training step returns.
        batch: what the step was given.
        examples: how many examples are in it.
    """

    run: Callable[[nn.Module, Any], Any]
    batch: Any
    examples: int


@final
@dataclass(frozen=True, eq=False)
class Program:
    """The calls of a module, and the step that made them.

    Attributes:
        calls: the outermost forward calls, in order.
        step: None if it is not known, or does not run on a copy.
        forward: a call of the whole module as whoever deploys it makes it, if the user gave one or the step makes none.
    """

    calls: tuple[ForwardCall, ...]
    step: Step | None = None
    forward: ForwardCall | None = None

    @property
    def examples(self) -> int:
        """How many examples it is given."""
        return self.step.examples if self.step else batch_size([(c.args, dict(c.kwargs)) for c in self.calls])

    @property
    def deployed(self) -> tuple[ForwardCall, ...]:
        """The calls of the whole module; empty if nobody makes one."""
        return (self.forward,) if self.forward else tuple(call for call in self.calls if call.module == "")

    @property
    def counted(self) -> int:
        """How many examples the evaluation path is given, whose operations are counted."""
        return batch_size([(c.args, dict(c.kwargs)) for c in self.deployed]) if self.deployed else self.examples

    @property
    def runs_step_only(self) -> bool:
        """Whether the evaluation path is that of the step, since no call of the whole module is known."""
        return self.step is not None and not self.deployed

    def few(self, most: int) -> Program:
        """Return the program on at most so many of its examples."""
        batch = batch_size([(c.args, dict(c.kwargs)) for c in self.calls])
        step = self.step
        if step is not None:
            step = replace(step, batch=few_examples(step.batch, step.examples, most), examples=min(step.examples, most))
        forward = self.forward and few_of(self.forward, self.counted, most)
        return Program(tuple(few_of(c, batch, most) for c in self.calls), step, forward)

    def disturbed(self, rows: Sequence[int]) -> Program:
        """Return the program in which the examples that these rows name have become others, their labels kept."""
        if self.step is not None:
            return replace(self, step=replace(self.step, batch=disturb_examples(self.step.batch, self.examples, rows)))
        batch = self.examples

        def disturb(call: ForwardCall) -> ForwardCall:
            args, kwargs = disturb_examples((call.args, dict(call.kwargs)), batch, rows)
            return ForwardCall(call.module, args, kwargs)

        return replace(self, calls=tuple(map(disturb, self.calls)))

    def cast(self, dtype: torch.dtype) -> Program:
        """Return the program with every floating-point input in another precision."""
        step = None if self.step is None else replace(self.step, batch=cast(self.step.batch, dtype))
        forward = None if self.forward is None else cast_call(self.forward, dtype)
        return Program(tuple(cast_call(c, dtype) for c in self.calls), step, forward)

    def without_step(self) -> Program:
        """Return the calls alone."""
        return replace(self, step=None)

    def with_forward(self, net: nn.Module) -> Program:
        """Return the program with a call of the whole module, where the module defines one and the step makes none.

        Its first part is given what the whole would be given, as in ``self.head(self.encoder(x))``.
        """
        owner = (type(net).forward.__module__ or "").split(".")[0]
        if self.deployed or not self.calls or owner in _FRAMEWORKS:
            return self
        return replace(self, forward=replace(self.calls[0], module=""))

    def run(self, net: nn.Module, *, training: bool) -> Iterator[Any]:
        """Run one path, and yield what each of its parts returns."""
        if self.step is not None and (training or not self.deployed):
            yield self.step.run(net, self.step.batch)
            return
        for call in self.calls if training or not self.deployed else self.deployed:
            yield net.get_submodule(call.module)(*call.args, **call.kwargs)
