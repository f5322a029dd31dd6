"""The proof by trial: a family that cannot be removed without a trace is frozen, whatever the rules believed.

For every group at once, up to half of the channels are removed from the copy. The outputs of both paths, and what every
layer reads of the channels that stay, must equal those of the whole copy in which nothing reads the removed ones: the
consumers' weights for them are zero, as are the layers that make queries and keys, which no weight reads; and
normalisations over them, where the user lets them shrink, leave them out of their statistics. At the outputs alone a
branch behind a scalar that is still zero, or many layers without norms, would hide what shows once weights have grown.
Only if that fails are the groups tried apart: first those near the module that raised, then by halves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import Axis
from lightning_taylor.modules.attributes import follow_shapes, known
from lightning_taylor.modules.model_copy import tensor_names
from lightning_taylor.modules.resize import hold, resized
from lightning_taylor.trace.compare import input_axes, is_equal, largest, relative_difference, trusted_outputs
from lightning_taylor.trace.constraints.norm_statistics import MaskedNormMode, NormStatistics
from lightning_taylor.trace.decisions import DecisionsFollowed, DecisionsNoted
from lightning_taylor.trace.draws import DRAWS, draw_removal, turns
from lightning_taylor.trace.observe import Observation, Paths
from lightning_taylor.trace.partition import LabelPartition
from lightning_taylor.trace.reasons import Why
from lightning_taylor.trace.source_line import raised_in_words

__all__ = [
    "prove",
]

_TIGHT = 1e-9

_LOOSE = 1e-2

_VANISHING = 1e-3
"""Of what a layer reads in the whole net: what is smaller in all its entries is compared with this much of it."""


Keep = Mapping[Axis, Tensor]
"""What stays of every axis that loses something: see ``ChannelGraph.keep``."""

_EVALUATION, _TRAINING, _BOTH = (False,), (True,), (False, True)


def prove(
    net: nn.Module,
    build: Callable[[], ChannelGraph],
    partition: LabelPartition,
    statistics: NormStatistics,
    outputs: Callable[[Paths, bool], Observation],
) -> ChannelGraph:
    """Freeze, in the partition, every group whose removal from ``net`` raises or changes the outputs.

    Args:
        net: a private copy; left as it was.
        build: makes the graph from the partition as it stands.
        partition: gets the failures as reasons.
        statistics: says what stays of what a normalisation averages over.
        outputs: runs the net, each path of those that it is given; on one example, or on two.

    Returns:
        The graph of what can be removed.
    """
    trial = _Trial(net, outputs, partition, statistics)
    while True:
        graph = build()
        failed = trial.failures(graph, list(graph.groups))
        if not failed:
            return graph
        for name, reason in failed.items():
            if not partition.try_next(partition.labels_of(graph.groups[name]), reason):
                partition.freeze_labels_of(graph.groups[name], reason)


class _Trial:
    """Removes channels from a copy and compares, giving everything back.

    Where both paths of the whole net give the same numbers to the last digit, the training path is tried on the first
    draw only: for most nets it is the same code, and half of the proof's time. That draw has two examples: what takes
    the first dimension for time would go through its loop only once with one.
    """

    def __init__(
        self,
        net: nn.Module,
        outputs: Callable[[Paths, bool], Observation],
        partition: LabelPartition,
        statistics: NormStatistics,
    ) -> None:
        self._net = net
        self._partition = partition
        self._statistics_of_norms = statistics
        self._run = outputs
        self._two = True
        self._proven_on_two = False
        self._read_tolerances: dict[tuple[bool, str, int], float] = {}
        self._sizes: dict[tuple[bool, str, int], float] = {}
        names = tensor_names(net)
        self._input_axes = input_axes(net, names)
        self._tensors = {names[id(t)]: t for t in (*net.parameters(), *net.buffers())}
        self._tolerances = self._sensitivity()

    def failures(self, graph: ChannelGraph, names: Sequence[str]) -> dict[str, str]:
        """Group -> why it cannot be removed, for the groups that fail; all together first."""
        reason = self._fails(graph, names) if names else None
        if reason is None:
            return {}
        if len(names) == 1:
            return {names[0]: reason}
        half = len(names) // 2
        found = self.failures(graph, names[:half])
        # What is learnt of a grid that fails, or of a number that follows, may well settle the others.
        if not any(self._open(graph, name) for name in found):
            found = {**found, **self.failures(graph, names[half:])}
        # Each half is right alone and both together are not: the later ones yield.
        return found or dict.fromkeys(names[half:], reason)

    def _open(self, graph: ChannelGraph, name: str) -> bool:
        return self._partition.is_open(self._partition.labels_of(graph.groups[name]))

    def _fails(self, graph: ChannelGraph, names: Sequence[str]) -> str | None:
        turn = turns(graph)
        for draw in range(DRAWS):
            remove = draw_removal(graph, names, draw, turn)
            if not remove:
                continue
            keep = graph.keep(remove)
            paths = _EVALUATION if draw and self._alike else _BOTH
            expected, decisions = self._ignoring(graph, remove, keep, paths, two=draw == 0 and self._two)
            try:
                with self._sliced(graph, keep), DecisionsFollowed(decisions, self._floor):
                    smaller = self._run(paths, draw == 0 and self._two)
            except Exception as error:
                return Why.ASSUMES_WIDTH(error=raised_in_words(error))
            reason = self._differ(expected, smaller) or self._read_differently(expected, smaller, graph, keep)
            if reason is not None:
                return reason
        return None

    def _differ(self, expected: Observation, smaller: Observation) -> str | None:
        pairs = zip(expected.outputs, smaller.outputs, self._tolerances[: len(expected.outputs)], strict=True)
        for one, other, tolerance in pairs:
            if tolerance is None:
                continue
            if one.shape != other.shape:
                return Why.CHANGES_SHAPE()
            difference = relative_difference(one, other)
            if not difference <= tolerance:
                return Why.CHANGES_OUTPUT(difference=difference)
        return None

    def _read_differently(
        self, expected: Observation, smaller: Observation, graph: ChannelGraph, keep: Keep
    ) -> str | None:
        for key, one in expected.reads.items():
            tolerance, other = self._read_tolerances.get(key), smaller.reads.get(key)
            axis = self._input_axes.get(key[1])
            if tolerance is None or other is None or axis is None:
                continue
            weight, dim = axis
            kept = keep.get(weight)
            if kept is not None and one.shape[dim] == graph.width(weight):
                one = one.index_select(dim, kept.to(one.device))
            # What removes entries along another dimension leaves nothing to compare: a layer over positions, say.
            if one.shape != other.shape:
                continue
            # A norm over the one channel that is left gives zero, and what is made of it has the size of rounding.
            difference = relative_difference(one, other, _VANISHING * self._sizes[key])
            if not difference <= tolerance:
                return Why.CHANGES_READ(layer=key[1] or "the model", difference=difference)
        return None

    def _ignoring(
        self, graph: ChannelGraph, remove: dict[str, Tensor], keep: Keep, paths: Paths, *, two: bool
    ) -> tuple[Observation, DecisionsNoted]:
        """What the net does, and decides, while it ignores the channels: on two examples where it runs on two."""
        decisions = DecisionsNoted()
        with self._masked(graph, remove), self._statistics(keep), decisions:
            observation = self._run_on_two(paths) if two else self._run(paths, False)
        if observation is None:
            self._two = False
            return self._ignoring(graph, remove, keep, paths, two=False)
        return observation, decisions

    def _run_on_two(self, paths: Paths) -> Observation | None:
        """Return nothing where two examples are no batch for the code: it raises, or makes more outputs, as a detector.

        It is the whole net that is tried, before any sliced one.
        """
        if self._proven_on_two:
            return self._run(paths, True)
        try:
            observation = self._run(paths, True)
        except Exception:
            return None
        self._proven_on_two = len(observation.outputs) == len(self._tolerances)
        return observation if self._proven_on_two else None

    def _sensitivity(self) -> list[float | None]:
        """Per output, what a last-digit change of the weights makes of it, as the tolerance: some nets are chaotic.

        None for an output that such a change turns over (detections, ranked by scores that tie), and for those of the
        same path, which are picked along with it: they prove nothing, as long as the other path (its losses) does.
        The same for what layers read.
        """
        decisions = DecisionsNoted()
        with decisions:
            evaluation = self._run(_EVALUATION, False)
            training = self._run(_TRAINING, False)
        before = [*evaluation.outputs, *training.outputs]
        half = len(before) // 2
        self._alike = len(before) == 2 * half and all(map(is_equal, before[:half], before[half:]))
        precision = torch.finfo(before[0].dtype).eps if before else 1e-16
        self._floor = _TIGHT if precision < 1e-10 else 1e-3
        touched = [t for t in self._tensors.values() if t.is_floating_point()]
        kept = [t.detach().clone() for t in touched]
        with torch.no_grad():
            for t in touched:
                t.mul_(1 + 4 * precision)
            with DecisionsFollowed(decisions, self._floor):
                after = self._run(_EVALUATION if self._alike else _BOTH, False)
            for t, value in zip(touched, kept, strict=True):
                t.copy_(value)
        reads = {**evaluation.reads, **training.reads}
        for (path, layer, number), one in reads.items():
            other = after.reads.get((path and not self._alike, layer, number))
            drift = float("inf") if other is None else relative_difference(one, other)
            if 100 * drift <= _LOOSE:
                self._read_tolerances[path, layer, number] = max(self._floor, 100 * drift)
                self._sizes[path, layer, number] = largest(one)
        drifts = [relative_difference(a, b) for a, b in zip(before, after.outputs, strict=False)] * (
            2 if self._alike else 1
        )
        bounds = [min(max(self._floor, 100 * drift), _LOOSE) for drift in drifts]
        steady = [100 * drift <= _LOOSE for drift in drifts]
        trusted = trusted_outputs(steady, len(evaluation.outputs))
        return [b if t or not any(trusted) else None for b, t in zip(bounds, trusted, strict=True)]

    @contextmanager
    def _masked(self, graph: ChannelGraph, remove: dict[str, Tensor]) -> Iterator[None]:
        """Nothing reads the removed channels."""
        kept: dict[str, Tensor] = {}
        for name, index_R in remove.items():
            for s in graph.groups[name].read:
                tensor = self._tensors[s.tensor].detach()
                if s.tensor not in kept:
                    kept[s.tensor] = tensor.clone()
                tensor.index_fill_(s.dim, s.index[index_R].flatten().to(tensor.device), 0)
        try:
            yield
        finally:
            for name, value in kept.items():
                self._tensors[name].detach().copy_(value)

    def _statistics(self, keep: Keep) -> MaskedNormMode:
        """Normalisations over the channels see what stays of every vector that loses something."""
        vectors = {id(self._tensors[name]): kept for (name, dim), kept in keep.items() if dim == 0}
        return MaskedNormMode(vectors, self._statistics_of_norms.kept(keep))

    @contextmanager
    def _sliced(self, graph: ChannelGraph, keep: Keep) -> Iterator[None]:
        """The channels are really gone."""
        kept: dict[str, dict[int, Tensor]] = {}
        for (name, dim), index in keep.items():
            kept.setdefault(name, {})[dim] = index
        old = {name: self._tensors[name].detach() for name in kept}
        changed = []
        try:
            with torch.no_grad():
                for name, dims in kept.items():
                    hold(self._tensors[name], resized(old[name], dims))
            values = known(graph.followers, {name: tuple(t.shape) for name, t in self._tensors.items()})
            for name, module in self._net.named_modules():
                changed.append((module, follow_shapes(module, values=values.get(name))))
            yield
        finally:
            with torch.no_grad():
                for name, tensor in old.items():
                    hold(self._tensors[name], tensor)
            for module, attributes in changed:
                for attribute, (was, _) in attributes.items():
                    setattr(module, attribute, was)
