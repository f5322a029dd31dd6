"""What a criterion is: a recipe that a user names, and the scorer it starts on a model between two events.

Shape legend: C = channels of a group.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

from torch import Tensor, nn

from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.scores.accumulator import ChannelSums
from lightning_taylor.scores.normalize import Normalization

__all__ = [
    "Criterion",
    "IdleScorer",
    "Scorer",
]


class Criterion(ABC):
    """How channels are scored. Holds plain settings only, so that it can be built from YAML and used many times.

    Your own criterion is a subclass with ``scorer``, which returns a ``Scorer`` with ``scores``; everything else has a
    default. Its settings are the arguments of ``__init__``, kept as attributes of the same names: their ``repr`` tells
    a resumed fit whether it is still the criterion that gathered the checkpoint's scores.

    Example:
        >>> import torch
        >>> class PeakWeight(Criterion):
        ...     "The largest weight that reads a channel."
        ...     def scorer(self, model, graph, *, event=0):
        ...         return PeakWeightScorer(model, graph)
        >>> class PeakWeightScorer(Scorer):
        ...     def __init__(self, model, graph):
        ...         self.model, self.graph = model, graph
        ...     def peak(self, group, c):
        ...         weights = ((self.model.get_parameter(s.tensor), s) for s in group.of("consumer"))
        ...         return max(float(w.index_select(s.dim, s.index[c].to(w.device)).abs().max()) for w, s in weights)
        ...     def scores(self):
        ...         groups = self.graph.groups.items()
        ...         return {name: torch.tensor([self.peak(g, c) for c in range(g.size)]) for name, g in groups}

        In Python it goes to ``TaylorPruning(criterion=PeakWeight())``; in YAML, by the name it can be imported by:
        ``criterion: {class_path: my_package.PeakWeight}``.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _refuse_old_names(cls, _OLD_NAMES_OF_CRITERION)

    @property
    def default_normalization(self) -> Normalization:
        """How its scores are best compared across groups: what ``TaylorPruning(normalization=None)`` takes.

        "none" for those that are changes of the loss, which have one unit everywhere; "l2" for the others.
        """
        return "l2"

    @property
    def default_cost_power(self) -> float:
        """What ``TaylorPruning(cost_power=None)`` takes, of FLOPs and parameters; of memory and latency twice that."""
        return 0.0

    @abstractmethod
    def scorer(self, model: nn.Module, graph: ChannelGraph, *, event: int = 0) -> Scorer:
        """Start to gather scores on a model at its present widths.

        Args:
            model: hooks may be placed on it until the scorer is closed; nothing else of it is changed.
            graph: its channel graph at the present widths.
            event: how many events there were before; for whatever must differ between events but not between ranks
                or after a resume.

        Returns:
            The scorer; close it before the widths change, and start another one.
        """

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"


class Scorer(ABC):
    """Gathers the scores of one model between two events. What a criterion does not need does nothing here.

    The callback makes these calls, one scorer from event to event::

        scorer = criterion.scorer(model, graph, event=e)
        scorer.carry_over(before, remove)                 # after an event; or load_state, after a checkpoint
        for batch in loader:
            scorer.resume()                               # or pause(), and nothing else of a batch that is not scored
            scorer.on_batch(batch)
            loss = training_step(batch)                   # forward pass
            scorer.drop_batch()                           # if the optimizer evaluates its batch by a closure
            scorer.on_loss(loss)
            scorer.before_backward()
            loss.backward()
            scorer.after_backward()
            if accumulated:
                scorer.before_step(parameters)            # once for each optimizer
                optimizer.step()
            scorer.end_batch(examples=len(batch))
            if accumulated:
                scorer.sync()
            if event_is_due:
                remove = decide(scorer.scores())
                prune_channels(model, graph, remove)
                scorer.close()                            # the next one starts at the new widths
        scorer.close()

    Validation runs between two batches: passes without gradients must not count, nor those of a copy of the model.
    ``check_criterion`` of ``lightning_taylor.extend`` makes all of these calls, and says which promise is broken.

    What must outlive a checkpoint goes into a ``ChannelSums``, returned as ``metric``: then ranks are reduced and a
    fit resumes without another line. A scorer that keeps anything else overrides ``sync``, ``state``, ``load_state``
    and ``merge_states``.
    """

    needs_input_gradient: bool = False
    """Whether it scores nothing where no gradient reaches what a layer reads, as behind a frozen backbone."""

    needs_weight_gradient: bool = False
    """Whether it scores nothing where a layer is not trained, and no gradient goes through it either."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _refuse_old_names(cls, _OLD_NAMES_OF_SCORER)

    @property
    def unscorable(self) -> Mapping[str, str]:
        """Groups that this criterion cannot score on this model -> the reason in words."""
        return {}

    @property
    def metric(self) -> ChannelSums | None:
        """The sums since the last event; None for a criterion that gathers nothing."""
        return None

    def pause(self) -> None:  # noqa: B027
        """Leave the passes alone until ``resume``, at no cost: the batches to come are not to be scored.

        Until then none of the calls that are made batch by batch come. Also to begin in the middle of a batch: gradient
        checkpointing runs the forward pass a second time in the backward pass, and must find it as it was.
        """

    def resume(self) -> None:  # noqa: B027
        """Watch the passes again."""

    def on_batch(self, batch: Any) -> None:  # noqa: B027
        """A training batch is about to be used, as the data loader gave it and on its device.

        For a criterion that needs the targets; not called for a step that fetches its batches by itself.
        """

    def compiles(self, examples: int) -> bool:
        """Whether compiled code gathers what this scorer needs of a batch; if not, the batch runs uncompiled.

        Args:
            examples: how many examples the batch has on this rank.
        """
        return True

    def on_loss(self, loss: Tensor) -> None:  # noqa: B027
        """A loss is there, and its graph not yet used: for a criterion that makes passes of its own through it.

        Args:
            loss: a scalar, multiplied by what ``end_batch`` gets as ``grad_scale``; its graph must be retained.
        """

    def before_backward(self) -> None:  # noqa: B027
        """The backward pass of a loss begins: what the hooks saw in other passes does not count.

        Such as the gradient penalty of a GAN, which calls ``torch.autograd.grad`` in the training step.
        """

    def after_backward(self) -> None:  # noqa: B027
        """The backward pass of a loss has ended: what the hooks saw in it counts."""

    def end_batch(self, *, examples: int, grad_scale: float | Tensor = 1.0) -> None:  # noqa: B027  (most need no batches)
        """Take in what the hooks gathered since the last call: one micro-batch, after its backward passes.

        Contributions of several passes are added with their signs: call it between the passes of losses that must
        not cancel, such as those of a GAN's generator and discriminator. If ``after_backward`` was called, only
        what was seen before it counts; else everything.

        A micro-batch with a score that is not finite is dropped as a whole, without waiting for the device.

        Args:
            examples: how many examples it had on this rank, at least 1.
            grad_scale: what the loss was multiplied by before ``backward``: the scale of the GradScaler, divided by
                the number of accumulated batches if the loss was.
        """

    def drop_batch(self) -> None:  # noqa: B027
        """Forget the backward passes since the last ``end_batch``: the optimizer has evaluated the batch once more.

        Called between the forward and the backward pass of the evaluation that counts.
        """

    def before_step(  # noqa: B027
        self, parameters: Iterable[Tensor] | None = None, *, grad_scale: float | Tensor = 1.0
    ) -> None:
        """Take in the gradients of one optimizer step: synchronised over ranks, before clipping.

        Args:
            parameters: what the optimizer steps; None for all that have a gradient.
            grad_scale: what the gradients still carry: the scale of the GradScaler for an optimizer that unscales
                inside of its step (a fused one), else 1.
        """

    @abstractmethod
    def scores(self) -> dict[str, Tensor]:
        """Group name -> shape ``(C,)``, float32, on the CPU; larger means more important.

        Groups without evidence (no gradient ever reached them) and unscorable ones are left out. Waits for the device.
        """

    def carry_over(self, before: Scorer, remove: Mapping[str, Tensor]) -> None:  # noqa: B027
        """An event is over, and this scorer begins where another one ended: for scores with a memory.

        Args:
            before: the scorer of the same criterion up to the event; closed.
            remove: group name -> the channels that went, sorted indices into the widths before the event.
        """

    def sync(self) -> None:
        """Reduce the sums over all ranks; a no-op on one process. All ranks must call it, as often as they like."""
        if self.metric is not None:
            self.metric.settle()

    def state(self) -> dict[str, Tensor]:
        """What was gathered so far, as plain CPU tensors; of this rank, so call ``sync`` first."""
        return self.metric.state() if self.metric is not None else {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a ``state``; every rank takes the same one.

        Raises:
            ValueError: if it was gathered at other widths.
        """
        if self.metric is not None:
            self.metric.load(state)

    def merge_states(self, states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The state of one scorer that had seen what several saw, at the same widths: their sums are added."""
        return {name: sum((state[name] for state in states[1:]), states[0][name]) for name in states[0]}

    def close(self) -> None:  # noqa: B027
        """Take every hook off the model; a no-op the second time."""


_OLD_NAMES_OF_CRITERION = {
    "watch": "scorer",
    "own_normalization": "default_normalization",
    "own_flops_power": "default_cost_power",
    "default_flops_power": "default_cost_power",
}
_OLD_NAMES_OF_SCORER = {
    "blind": "unscorable",
    "follow": "carry_over",
    "join": "merge_states",
    "see_batch": "on_batch",
    "see_loss": "on_loss",
}


def _refuse_old_names(cls: type, new_names: Mapping[str, str]) -> None:
    """Raise TypeError for a class that defines a method under a name that nobody calls any more."""
    for old, new in new_names.items():
        if old in vars(cls) and new not in vars(cls):
            raise TypeError(f"{cls.__name__} defines {old!r}, which is called {new!r} now; rename it")


@final
class IdleScorer(Scorer):
    """A scorer that gathers nothing: while no fit is under way, and once the target is met."""

    def scores(self) -> dict[str, Tensor]:
        """Return no scores."""
        return {}
