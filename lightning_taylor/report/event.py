"""One removal as its user hears of it: a line on the screen, and what a hook of the user's is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lightning_taylor.report.summary import Size

__all__ = ["PruningEvent"]

_NAMED = 3  # layers in a line


@dataclass(frozen=True)
class PruningEvent:
    """What an event did.

    Attributes:
        step: optimizer steps since the fit began.
        fractions: resource -> what is left of it, as a fraction of the dense model's: "flops", "params", "channels",
            and "latency" and "memory" if the target asks for them.
        channels: how many channels went, as the target counts them: one that several layers share is one.
        removed: layer -> how many of its output channels went; those that lost some.
        widths: layer -> how many output channels it has now; those that can lose some.
        seconds: wall time of the event.

    Example:
        >>> before = Size({"flops": 1.0}, {"conv1": 64, "conv2": 128})
        >>> print(PruningEvent.between(before, Size({"flops": 0.75}, {"conv1": 60, "conv2": 96}), 20, 36, 0.13))
        step 20: 36 channels went (conv2 32, conv1 4), 75.0% of the FLOPs are left; 0.13 s
    """

    step: int
    fractions: Mapping[str, float]
    channels: int
    removed: Mapping[str, int]
    widths: Mapping[str, int]
    seconds: float

    @classmethod
    def between(cls, before: Size, after: Size, step: int, channels: int, seconds: float) -> PruningEvent:
        """Compare the network's size before an event with that after it."""
        lost = {layer: width - after.widths.get(layer, width) for layer, width in before.widths.items()}
        removed = {layer: count for layer, count in lost.items() if count}
        return cls(step, dict(after.fractions), channels, removed, dict(after.widths), seconds)

    def __str__(self) -> str:
        largest = sorted(self.removed.items(), key=lambda item: -item[1])
        names = [f"{layer} {count}" for layer, count in largest[:_NAMED]]
        if others := len(largest) - len(names):
            names.append(f"{others} other layer{'s' * (others > 1)}")
        channels = f"{self.channels:,} channel{'s' * (self.channels > 1)}"
        went = f"{channels} went ({', '.join(names)})" if names else "no channel had to go"
        measured = [name for name in ("latency", "memory") if name in self.fractions]
        left = [f"{self.fractions['flops']:.1%} of the FLOPs are left"]
        left += [f"{self.fractions[name]:.1%} of the {name}" for name in measured]
        return f"step {self.step}: {went}, {', '.join(left)}; {self.seconds:.2g} s"
