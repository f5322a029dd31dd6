"""What a criterion is: a recipe that a user names, and the scorer it starts on a model between two events.

Shape legend: C = channels of a group.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from lightning_taylor.graph.channels import ChannelGraph
from lightning_taylor.scores.sums import ChannelSums

__all__ = ["Criterion", "Scorer"]


class Criterion(ABC):
    """How channels are scored. Holds plain settings only, so that it can be built from YAML and used many times."""

    @abstractmethod
    def watch(self, model: nn.Module, graph: ChannelGraph, *, event: int = 0) -> Scorer:
        """Start to gather scores on a model at its present widths.

        Args:
            model: hooks may be placed on it until the scorer is closed; nothing else of it is changed.
            graph: its channel graph at the present widths.
            event: how many events there were before; for whatever must differ between events but not between ranks
                or after a resume.

        Returns:
            The scorer; close it before the widths change, and watch again.
        """

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"


class Scorer(ABC):
    """Gathers the scores of one model between two events. What a criterion does not need does nothing here."""

    @property
    def blind(self) -> Mapping[str, str]:
        """Groups that this criterion cannot score on this model -> the reason in words."""
        return {}

    @property
    def metric(self) -> ChannelSums | None:
        """The sums since the last event; None for a criterion that gathers nothing."""
        return None

    def pause(self) -> None:  # noqa: B027
        """Leave the passes alone until ``resume``.

        To begin in the middle of a batch: gradient checkpointing runs the forward pass a second time in the backward
        pass, and must find it as it was.
        """

    def resume(self) -> None:  # noqa: B027
        """Watch the passes again."""

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
        """Forget what was gathered since the last ``end_batch``: the optimizer evaluates the batch once more."""

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

        Groups without evidence (no gradient ever reached them) and blind ones are left out. Waits for the device.
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

    def close(self) -> None:  # noqa: B027
        """Take every hook off the model; a no-op the second time."""
