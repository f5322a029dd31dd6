"""One architecture, measured: what of it can be removed, and whether the removal is exact.

The trace runs on the model as its user has it (float32, fresh weights). Then, in double precision and with every
constant weight given a spread, a quarter, three quarters and a different share of every group go at random, and the
sliced net must compute what the net computes whose consumers ignore those channels (``exactness.py``): in evaluation
mode, and in training mode without what is random in it.
"""

from __future__ import annotations

import re
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from exactness import masked, sliced
from torch import Tensor, nn

from lightning_taylor import UnsupportedModelError, trace_channels
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.modules.model_copy import reveal
from lightning_taylor.trace.forward import quiet, unchanged
from lightning_taylor.utilities.calls import cast, tensors_in

Example = tuple[nn.Module, tuple[Any, ...]]
"""A model and its positional arguments."""

MODES = {"evaluation": False, "training": True}
OUTPUT = "reaches the output"
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}
CHAOTIC = 1e-2


@dataclass
class Row:
    """What became of one model.

    Attributes:
        model: its name in the campaign.
        status: "right" (removable channels, all removals exact), "frozen-only" (nothing is removable), "refused" (by
            an ``UnsupportedModelError``), "wrong", "error", or "timeout".
        note: what went wrong, or the refusal.
        seconds: by the clock, of the whole row; ``trace_seconds`` of one processor core, of the trace with its proof.
        parameters: of the dense net.
        groups: of channels.
        channels: outputs of all convolution and linear layers that ran, without those that only make the network's
            outputs; ``removable`` of them belong to a group, ``inexact`` if ``allow_inexact_norms`` is set, too.
        outputs: channels that reach the network's output.
        unseen: layers that no path ran.
        difference: mode -> largest relative difference between the masked and the sliced net, over the removals. A
            mode whose outputs the last digit of the weights turns over (detections, ranked by scores that tie) shows
            nothing and is left out.
        drift: mode -> what a change of the weights in their last digit makes of the outputs: a net's own noise.
        effect: mode -> how much the removals changed the outputs; where it is nothing, nothing was shown.
        precision: in which the nets were compared: "float64" but for models that insist on float32.
        shapes: of the input tensors.
        peak_mib: peak memory of the process, about 400 of which are the libraries.
        reasons: kind of reason -> channels that it freezes.
        examples: kind of reason -> one layer with the whole reason.
    """

    model: str
    status: str = "error"
    note: str = ""
    seconds: float = 0.0
    trace_seconds: float = 0.0
    parameters: int = 0
    groups: int = 0
    channels: int = 0
    removable: int = 0
    inexact: int = 0
    outputs: int = 0
    unseen: int = 0
    difference: dict[str, float] = field(default_factory=dict)
    drift: dict[str, float] = field(default_factory=dict)
    effect: dict[str, float] = field(default_factory=dict)
    precision: str = ""
    shapes: list[list[int]] = field(default_factory=list)
    peak_mib: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)


def measure(name: str, build: Callable[[], Example]) -> dict[str, Any]:
    """The row of one model, as plain types; what goes wrong is written into it and not raised."""
    row, began = Row(name), time.monotonic()
    try:
        torch.manual_seed(0)
        model, args = build()
        row.parameters = sum(p.numel() for p in model.parameters())
        row.shapes = [list(t.shape) for t in tensors_in(args)]
        started = time.process_time()
        try:
            graph = trace_channels(model, args)
        finally:
            row.trace_seconds = round(time.process_time() - started, 2)
        count(row, graph)
        row.inexact = row.removable
        if any("normalisation over the channels" in why or "statistics run" in why for why in graph.frozen.values()):
            row.inexact = sum(map(len, carried(trace_channels(model, args, allow_inexact_norms=True)).values()))
        row.note = compare(row, model, args, graph) if graph.groups else ""
        row.status = "wrong" if row.note else "right" if graph.groups else "frozen-only"
    except UnsupportedModelError as error:
        row.status, row.note = "refused", str(error)
    except Exception as error:
        # Of the trace, or of the dense net in this campaign; what the sliced net raises is "wrong".
        row.note = f"{type(error).__name__}: {error}"
    row.seconds = round(time.monotonic() - began, 2)
    row.peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return asdict(row)


def count(row: Row, graph: ChannelGraph) -> None:
    """Fill in what the graph says: how many channels, and why the others stay."""
    row.groups, row.unseen = len(graph.groups), len(graph.unseen)
    free = carried(graph)
    reasons: Counter[str] = Counter()
    for layer, axis in graph.layers.items():
        width, here = graph.width(axis), len(free[layer])
        stay = parts(graph.frozen.get(layer, ""), width)
        out = sum(n for n, reason in stay if reason == OUTPUT)
        row.outputs += out
        row.channels += width - out
        row.removable += here
        for n, reason in stay:
            if reason != OUTPUT:
                reasons[kind(reason)] += n
                row.examples.setdefault(kind(reason), f"{layer}: {reason}")
    row.reasons = dict(reasons.most_common())


def carried(graph: ChannelGraph) -> dict[str, set[int]]:
    """Layer -> its output channels that belong to a group."""
    table = graph.slices_by_axis()
    return {
        layer: {i for _, s in table.get(axis, ()) for i in s.index.flatten().tolist()}
        for layer, axis in graph.layers.items()
    }


def parts(reason: str, width: int) -> list[tuple[int, str]]:
    """A layer's reason taken apart: how many channels stay for which one."""
    if not reason:
        return []
    counted = [re.fullmatch(r"(\d+) of \d+ channels: (.*)", p, re.S) for p in re.split(r"; (?=\d+ of \d+ ch)", reason)]
    return [(int(m[1]), m[2]) for m in counted if m] or [(width, reason)]


def kind(reason: str) -> str:
    """A reason without names of modules, lines, numbers and what an error said."""
    reason = re.sub(r", [\w.-]+\.py:\d+", "", reason)
    reason = re.sub(r"(?<= in )(the model itself|[\w.-]+)", "...", reason)
    reason = re.sub(r" \(\w+: .*", "", reason, flags=re.S)
    return re.sub(r"\d[\d.e+-]*", "N", reason)


def compare(row: Row, model: nn.Module, args: tuple[Any, ...], graph: ChannelGraph) -> str:
    """Fill in the differences; what is wrong in words, or nothing."""
    reveal(model, torch.Generator().manual_seed(1))
    args, dense = settle(row, model, args)
    floor = TOLERANCES[getattr(torch, row.precision)]
    noise = drifts(model, args, dense)
    row.drift = {mode: max(noise[mode], default=0.0) for mode in MODES}
    trusted = [mode for mode in MODES if row.drift[mode] < CHAOTIC]
    if not trusted:
        return "a change of the weights in their last digit turns its outputs over in both modes, so nothing is shown"
    wrong = []
    for share, remove in removals(graph):
        twin = masked(model, graph, remove)
        expected = {mode: run(twin, args, mode) for mode in MODES}
        del twin
        try:
            smaller = sliced(model, graph, remove)
            found = {mode: run(smaller, args, mode) for mode in MODES}
        except Exception as error:
            return f"{share} removed: {type(error).__name__}: {error}"
        for mode in trusted:
            differ = relative(expected[mode], found[mode])
            pairs = [(d, max(floor, 100 * n)) for d, n in zip(differ, noise[mode], strict=True)]
            row.difference[mode] = max(row.difference.get(mode, 0.0), *(d for d, _ in pairs), 0.0)
            row.effect[mode] = max(row.effect.get(mode, 0.0), *relative(expected[mode], dense[mode]), 0.0)
            wrong += [f"{share} removed, {mode}: differs by {d:.1e}" for d, bound in pairs if not d <= bound]
        del smaller
    return "; ".join(wrong[:4])


def settle(row: Row, model: nn.Module, args: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, list[Tensor]]]:
    """Double precision if the model runs that way; the arguments for it, and what the dense net computes."""
    for dtype in TOLERANCES:
        model.to(dtype)
        row.precision = str(dtype).removeprefix("torch.")
        given = cast(args, dtype)
        try:
            return given, {mode: run(model, given, mode) for mode in MODES}
        except Exception as error:
            failure = error
    raise failure


def removals(graph: ChannelGraph) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """A quarter and three quarters of every group, and of each another share."""
    generator = torch.Generator().manual_seed(2)
    yield "25 %", graph.sample(0.25, generator)
    yield "75 %", graph.sample(0.75, generator)
    chosen: dict[str, Tensor] = {}
    for name, size in graph.dense_sizes.items():
        count = int(torch.randint(size, (), generator=generator))
        if count:
            chosen[name] = torch.randperm(size, generator=generator)[:count].sort().values
    yield "another share of each", chosen


def run(model: nn.Module, args: tuple[Any, ...], mode: str) -> list[Tensor]:
    """All outputs, with dropout silent and batch norms on their running statistics; what is written is given back."""
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    with unchanged(model, MODES[mode], step=True), quiet(dtype=dtype):
        return [t.detach().clone() for t in tensors_in(model(*args)) if t.is_floating_point()]


def drifts(model: nn.Module, args: tuple[Any, ...], dense: dict[str, list[Tensor]]) -> dict[str, list[float]]:
    """What a last-digit change of all weights makes of each output."""
    kept = [(t, t.detach().clone()) for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    with torch.no_grad():
        for t, _ in kept:
            t.mul_(1 + 4 * torch.finfo(t.dtype).eps)
        moved = {mode: run(model, args, mode) for mode in MODES}
        for t, value in kept:
            t.copy_(value)
    return {mode: relative(dense[mode], moved[mode]) for mode in MODES}


def relative(ones: list[Tensor], others: list[Tensor]) -> list[float]:
    """Largest difference of each output relative to its largest entry; infinite where shapes or NaNs disagree."""
    if len(ones) != len(others):
        return [float("inf")] * len(ones)
    found = []
    for one, other in zip(ones, others, strict=True):
        if one.shape != other.shape or not bool((one.isfinite() == other.isfinite()).all()):
            found.append(float("inf"))
            continue
        finite = one.isfinite()
        one, other = one[finite], other[finite]
        found.append(float((one - other).abs().max() / one.abs().max().clamp(min=1e-300)) if one.numel() else 0.0)
    return found


def limit_memory(gib: float) -> None:
    """Let a model that needs more fail alone, instead of the machine."""
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (int(gib * 2**30), resource.RLIM_INFINITY))
