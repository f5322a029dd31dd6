"""What a pruning did, as plain data: asked and achieved side by side, layer by layer, and what was left alone."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.measure.latency import LatencyComparison
from lightning_taylor.plan.cost import Cost, CostModel
from lightning_taylor.plan.record import Record
from lightning_taylor.plan.target import Target
from lightning_taylor.report.layer_costs import layer_costs
from lightning_taylor.utilities.atomic import write_file

__all__ = [
    "Change",
    "LayerChange",
    "PruningSummary",
    "Size",
    "widths_after",
    "widths_now",
]

_RESOURCES = ("flops", "params", "channels")

_WHEN = ("before", "after")


@dataclass(frozen=True)
class Change:
    """A quantity before and after the pruning."""

    before: float
    after: float

    @property
    def remaining(self) -> float:
        """After as a fraction of before; 1 if there was nothing before."""
        return self.after / self.before if self.before else 1.0


@dataclass(frozen=True)
class LayerChange:
    """A layer before and after the pruning: its output channels, its FLOPs per example, its parameters."""

    layer: str
    before: int
    after: int
    flops_before: float = 0
    flops_after: float = 0
    params_before: int = 0
    params_after: int = 0


@dataclass(frozen=True)
class PruningSummary:
    """Everything a reader of the result needs, and nothing that needs the model.

    Attributes:
        asked: resource name -> the fraction of the dense model that was to remain; empty without a target.
        flops: FLOPs per example, 2 per multiply-add.
        params: number of parameter entries.
        channels: number of removable channels.
        layers: every channel-carrying layer, in forward order.
        frozen: layer -> why its channels (or some of them) had to stay.
        unscored: group -> why its channels could not be scored, and hence stayed.
        doubtful: number that a module keeps -> its value, and why it stays although it may count removable channels.
        events: one row per removal, without the indices.
        metrics: metric name -> its value before and after; only those measured on both sides.
        latency: dense against pruned, if it was measured at the end.
        measured: "latency" and "memory" as fractions of the dense model's, as the last event measured them.
        compiled_graphs: how many graphs ``torch.compile`` made in the course of the fit; 0 without it.
        curve: one row per validation: "step", "flops" (those of the network that was validated) and its metrics.
        scores: "first" and "last" -> group -> quantiles 0, .05, .25, .5, .75, .95 and 1 of its normalised scores,
            as they were just before the first and the latest event.
        oracle: one row per event at which the scores were checked: "step" and their rank "correlation" with what
            the removal of some channels did to the loss.
        widths: for each event, the channels of every layer that can lose some, after it.
        environment: where and how the report was measured: "machine", "device", "versions", "batch_size", and in
            bytes "state_dict_bytes" and "peak_bytes" (of one inference), each as {"dense": ..., "pruned": ...}.
            What could not be measured is not there.
        given: metrics whose value of the dense model the user gave, in the place of a validation.
        checkpoint: the file that holds the pruned model; empty if none was written.
        model: the import path of its class; empty if nobody knows.
        config: the configuration that LightningCLI saved of its fit; empty if there is none.
    """

    asked: Mapping[str, float]
    flops: Change
    params: Change
    channels: Change
    layers: tuple[LayerChange, ...]
    frozen: Mapping[str, str] = field(default_factory=dict)
    unscored: Mapping[str, str] = field(default_factory=dict)
    doubtful: Mapping[str, str] = field(default_factory=dict)
    events: tuple[Mapping[str, float], ...] = ()
    metrics: Mapping[str, Change] = field(default_factory=dict)
    latency: LatencyComparison | None = None
    measured: Mapping[str, float] = field(default_factory=dict)
    compiled_graphs: int = 0
    curve: tuple[Mapping[str, float], ...] = ()
    scores: Mapping[str, Mapping[str, tuple[float, ...]]] = field(default_factory=dict)
    oracle: tuple[Mapping[str, float], ...] = ()
    widths: tuple[Mapping[str, int], ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    given: tuple[str, ...] = ()
    checkpoint: str = ""
    model: str = ""
    config: str = ""

    @classmethod
    def of(
        cls,
        graph: ChannelGraph,
        target: Target | None = None,
        *,
        record: Record | None = None,
        unscored: Mapping[str, str] | None = None,
        metrics_before: Mapping[str, float] | None = None,
        metrics_after: Mapping[str, float] | None = None,
        latency: LatencyComparison | None = None,
        compiled_graphs: int = 0,
        curve: Sequence[Mapping[str, float]] = (),
        scores: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
        oracle: Sequence[Mapping[str, float]] = (),
        environment: Mapping[str, Any] | None = None,
        given: Iterable[str] = (),
        checkpoint: str = "",
        model: str = "",
        config: str = "",
    ) -> PruningSummary:
        """The summary of a pruned graph, which knows its dense shapes.

        Args:
            graph: the graph after the last event.
            target: what was asked for.
            record: the events.
            unscored: group -> why it could not be scored.
            metrics_before: metric name -> value of the dense model.
            metrics_after: the same of the pruned one; metrics that only one side has are left out.
            latency: dense against pruned.
            compiled_graphs: how many ``torch.compile`` made.
            curve: one row per validation.
            scores: quantiles of each group's scores, "first" and "last".
            oracle: one row per event at which the scores were checked.
            environment: where it was measured, sizes and peak memory.
            given: metrics of the dense model that the user gave.
            checkpoint: the file that holds the pruned model.
            model: the import path of its class.
            config: the configuration of its fit.
        """
        cost = CostModel(graph)
        first, last = metrics_before or {}, metrics_after or {}
        return cls(
            asked=target.asked if target else {},
            flops=Change(cost.dense.flops, cost.now.flops),
            params=Change(cost.dense.params, cost.now.params),
            channels=Change(cost.dense.channels, cost.now.channels),
            layers=_layers(graph),
            frozen=dict(graph.frozen),
            unscored=dict(unscored or {}),
            doubtful=dict(graph.doubtful),
            events=_event_rows(record or Record()),
            metrics={name: Change(float(first[name]), float(last[name])) for name in first if name in last},
            latency=latency,
            measured=dict(record.events[-1].measured) if record and record.events else {},
            compiled_graphs=compiled_graphs,
            curve=tuple(dict(row) for row in curve),
            scores={when: {g: tuple(q) for g, q in groups.items()} for when, groups in (scores or {}).items()},
            oracle=tuple(dict(row) for row in oracle),
            widths=widths_after(graph, record or Record()),
            environment=dict(environment or {}),
            given=tuple(given),
            checkpoint=checkpoint,
            model=model,
            config=config,
        )

    @property
    def baseline_step(self) -> int | None:
        """The step of the validation that the dense model's metrics are of; None if there was none before an event."""
        first = self.events[0]["step"] if self.events else math.inf
        steps = [row["step"] for row in self.curve if row["flops"] == self.flops.before and row["step"] <= first]
        return int(steps[-1]) if steps else None

    @property
    def achieved(self) -> dict[str, float]:
        """Resource name -> the fraction of the dense model that remains, for all that are known, asked or not."""
        return {**{name: getattr(self, name).remaining for name in _RESOURCES}, **self.measured}

    @property
    def met(self) -> bool:
        """Whether no asked fraction is exceeded, or unknown; true without a target."""
        if not self.asked:
            return True
        before, after = ({name: int(getattr(getattr(self, name), when)) for name in _RESOURCES} for when in _WHEN)
        return Target(**self.asked).met(Cost(**after), Cost(**before), self.measured)

    def to_plain(self) -> dict[str, Any]:
        """The summary in dicts, lists, strings and numbers; a number that is not finite becomes None."""
        plain = {
            "asked": dict(self.asked),
            "achieved": self.achieved,
            "met": self.met,
            **{name: vars(getattr(self, name)) for name in _RESOURCES},
            "layers": [vars(layer) for layer in self.layers],
            "frozen": dict(self.frozen),
            "unscored": dict(self.unscored),
            "doubtful": dict(self.doubtful),
            "events": [dict(event) for event in self.events],
            "metrics": {name: vars(change) for name, change in self.metrics.items()},
            "latency": self.latency.to_plain() if self.latency else None,
            **({"compiled_graphs": self.compiled_graphs} if self.compiled_graphs else {}),
            "curve": [dict(row) for row in self.curve],
            "scores": {when: {g: list(q) for g, q in groups.items()} for when, groups in self.scores.items()},
            **({"oracle": [dict(row) for row in self.oracle]} if self.oracle else {}),
            "widths": [dict(row) for row in self.widths],
            "environment": dict(self.environment),
            "baseline": {"step": self.baseline_step, "given": list(self.given)},
            "checkpoint": self.checkpoint,
            "model": self.model,
            "config": self.config,
        }
        return _finite(plain)

    def write_json(self, path: str | os.PathLike[str]) -> Path:
        """Write ``to_plain()`` to a file, all or nothing: a reader never sees half of it.

        Args:
            path: usually ``pruning.json``; its folder is made if missing, an existing file is replaced.

        Returns:
            The path.
        """
        return write_file(path, json.dumps(self.to_plain(), indent=2, allow_nan=False) + "\n")


def _layers(graph: ChannelGraph) -> tuple[LayerChange, ...]:
    costs = layer_costs(graph)
    return tuple(
        LayerChange(
            layer,
            graph.dense[tensor][dim],
            graph.shapes[tensor][dim],
            *(round(cost.flops) for cost in costs[layer]),
            *(cost.params for cost in costs[layer]),
        )
        for layer, (tensor, dim) in graph.layers.items()
    )


def _event_rows(record: Record) -> tuple[Mapping[str, float], ...]:
    return tuple(
        {
            "step": event.step,
            "removed": sum(map(len, event.removed.values())),
            "flops": event.flops,
            "params": event.params,
            "channels": event.channels,
            "seconds": event.seconds,
            **event.measured,
        }
        for event in record.events
    )


def _finite(value: Any) -> Any:
    """JSON has no word for nan and infinity."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Size:
    """How large a network is.

    Attributes:
        fractions: resource -> fraction of the dense model that is left.
        widths: layer -> channels, of every layer that can lose some.
    """

    fractions: Mapping[str, float]
    widths: Mapping[str, int]


def widths_now(graph: ChannelGraph) -> dict[str, int]:
    """The channels of every layer that can lose some, in forward order.

    Args:
        graph: at the present widths.

    Returns:
        Layer name -> how many output channels it has.
    """
    removable = graph.slices_by_axis()
    return {layer: graph.width(axis) for layer, axis in graph.layers.items() if axis in removable}


def widths_after(graph: ChannelGraph, record: Record) -> tuple[Mapping[str, int], ...]:
    """The same after each event of a record.

    Counted back from the present: each channel of a group that an event removed took a fixed number of entries from
    each layer that the group lives in. So it holds after a resume, and after a guard went back.

    Args:
        graph: after the last event of the record.
        record: the events.

    Returns:
        One mapping per event, in their order.
    """
    removable, widths = graph.slices_by_axis(), widths_now(graph)
    entries = {layer: Counter[str]() for layer in widths}
    for layer in widths:
        for group, part in removable[graph.layers[layer]]:
            entries[layer][group] = part.index.shape[1]  # under two roles the same entries
    found: list[Mapping[str, int]] = []
    for event in reversed(record.events):
        found.append(dict(widths))
        for layer in widths:
            widths[layer] += sum(len(event.removed.get(group, ())) * each for group, each in entries[layer].items())
    return tuple(reversed(found))
