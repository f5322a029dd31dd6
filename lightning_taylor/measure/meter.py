"""What a network would take on this machine if it had other widths: measured, as a fraction of the dense one."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, final

import torch
from torch import nn

from lightning_taylor.errors import UnsupportedModelError
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.measure.dry_pass import DryPass
from lightning_taylor.measure.latency import compare_latency, measure_latency
from lightning_taylor.measure.memory import peak_bytes
from lightning_taylor.measure.memory_curve import MemoryCurve
from lightning_taylor.measure.network_only import calls_of_network, modules_beside, tensors_of_network
from lightning_taylor.measure.operator_times import timer_on
from lightning_taylor.measure.savings import Savings
from lightning_taylor.modules.model_copy import private_copy
from lightning_taylor.modules.resize import with_shapes
from lightning_taylor.utilities.calls import ForwardCall, copied_like, runner, tensors_in, with_examples

__all__ = [
    "Measure",
    "Meter",
]

Shapes = Mapping[str, tuple[int, ...]]
"""Qualified name of a parameter or buffer -> its shape."""

_SECONDS = 2.0  # what one latency measurement may take, where five pairs do not take longer

_CAREFUL_SECONDS = 20.0  # what a careful one may take, likewise

_PRECISE = 0.005  # standard error of a careful one, as a fraction of itself

_PAIRS = (5, 30)  # fewest, and most


class Measure(Protocol):
    """Whatever can tell the measured resources of a network from its shapes: a ``Meter``, or a test's stand-in."""

    def ratios(self, shapes: Shapes, resources: Sequence[str], *, careful: bool = False) -> dict[str, float]:
        """Resource name -> what a network of these shapes takes, as a fraction of the dense one.

        ``careful`` asks for as many measurements as half a per cent takes, where that is not too long.
        """
        ...


@final
class Meter:
    r"""Measures networks of other widths against the dense one, on this machine.

    .. math::  r_{latency} = \operatorname{median}_i \frac{t_i(pruned)}{t_i(dense)}, \qquad
               r_{memory} = \frac{\text{peak bytes}(pruned)}{\text{peak bytes}(dense)}

    Both run the evaluation path without gradients, eagerly, in the parameters' own precision unless ``context``
    says otherwise. Latencies are taken in turns, 5 to 30 pairs in about two seconds (or what 5 pairs take); on a
    machine that others use too, expect a few per cent of noise. Memory is counted, not sampled, and has none
    (:func:`lightning_taylor.measure.memory.peak_bytes` says what it leaves out).

    What stands beside the network in one module (a teacher, a loss network, what is out of ``scope``) takes no memory
    here, and its own calls take no time.

    The model is copied once, at once, and never touched or looked at again; the copy waits on the CPU. Random state
    is given back after every measurement.

    Args:
        model: at any widths; its evaluation path is what counts.
        graph: the model's channel graph, for the dense shapes.
        calls: what the model is called with, as the trace saw it.
        batch: examples per forward pass, see ``with_examples``; those of ``calls`` if None.
        context: entered around every forward pass, e.g. Lightning's ``precision_plugin.forward_context``.

    Raises:
        UnsupportedModelError: if the model cannot be copied.
        ValueError: if there are no calls, or ``batch`` is below 1.

    Example:
        >>> from lightning_taylor.trace.api import trace_channels
        >>> net = nn.Sequential(nn.Linear(4, 30), nn.ReLU(), nn.Linear(30, 2))
        >>> graph = trace_channels(net, torch.rand(1, 4))
        >>> meter = Meter(net, graph, [ForwardCall("", (torch.rand(10, 4),))])
        >>> smaller = graph.shrink({"0": range(15)})
        >>> round(meter.ratios(smaller.shapes, ["memory"])["memory"], 3)
        0.525
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        calls: Sequence[ForwardCall],
        batch: int | None = None,
        *,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        if not calls:
            raise ValueError("a meter needs at least one call of the model to measure it by; pass example_inputs=")
        if batch is not None and batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        self._beside = modules_beside(model, graph.parameters)
        calls = calls_of_network(calls, self._beside)
        self._calls = with_examples(calls, batch) if batch else calls
        self._context = context
        self._device = next(model.parameters()).device
        self._net = with_shapes(private_copy(model).eval(), graph.dense, graph.followers).to("cpu")
        self._followers = graph.followers
        self._dense_bytes: int | None = None
        self._savings: Savings | None = None

    def ratios(self, shapes: Shapes, resources: Sequence[str], *, careful: bool = False) -> dict[str, float]:
        """What a network of these shapes takes, as fractions of what the dense one takes.

        Args:
            shapes: as ``ChannelGraph.shapes``.
            resources: "latency", "memory" or both; only these are measured.
            careful: time latencies until their median's standard error is half a per cent, or for 20 seconds.

        Raises:
            ValueError: for another resource.
        """
        measures = {"latency": self._careful if careful else self._latency, "memory": self._memory}
        unknown = [name for name in resources if name not in measures]
        if unknown:
            raise ValueError(f"cannot measure {', '.join(unknown)}; a meter knows {', '.join(measures)}")
        with _undisturbed(self._device):
            dense = copy.deepcopy(self._net).to(self._device)
            other = with_shapes(dense, shapes, self._followers)
            calls = copied_like(self._calls, next(dense.parameters()))
            return {name: measures[name](dense, other, calls) for name in resources}

    def savings(self, graph: ChannelGraph, resource: str, limit: float) -> dict[str, float]:
        """What one channel of each group saves; see ``Savings``.

        Args:
            graph: at the present widths.
            resource: "latency" or "memory".
            limit: the share of the dense network's that may remain.

        Returns:
            Group name -> seconds or bytes, at the meter's batch; without groups of one channel.

        Raises:
            UnsupportedModelError: where the network cannot run without data.
        """
        with _undisturbed(self._device):
            savings = self._of_parts(graph)
            return savings.latency(graph) if resource == "latency" else savings.memory(graph, limit)

    def memory_curve(self, graph: ChannelGraph) -> MemoryCurve | None:
        """The bytes alive at any smaller widths, by passes without data; None where it cannot be told so.

        Args:
            graph: at the present widths.
        """
        with _undisturbed(self._device):
            try:
                return self._of_parts(graph).memory_curve(graph)
            except UnsupportedModelError:
                return None

    def _of_parts(self, graph: ChannelGraph) -> Savings:
        if self._savings is None:
            dry = DryPass(self._net, self._calls, followers=self._followers, beside=self._beside)
            self._savings = Savings(dry, graph, timer_on(self._device))
        return self._savings

    def _latency(self, dense: nn.Module, other: nn.Module, calls: Sequence[ForwardCall]) -> float:
        before, after = self._inside(runner(dense, calls)), self._inside(runner(other, calls))
        pair = 2 * measure_latency(before, warmup=1, repeats=1).median
        fewest, most = _PAIRS
        pairs = min(most, max(fewest, int(_SECONDS / pair)))
        return 1 / compare_latency(before, after, warmup=1, repeats=pairs).speedup

    def _careful(self, dense: nn.Module, other: nn.Module, calls: Sequence[ForwardCall]) -> float:
        """The first pairs tell how many it takes; they are not among them, since they chose the number."""
        before, after = self._inside(runner(dense, calls)), self._inside(runner(other, calls))
        fewest, most = _PAIRS
        first = compare_latency(before, after, warmup=1, repeats=fewest)
        pair = first.dense.median + first.pruned.median
        first = compare_latency(before, after, warmup=0, repeats=min(most, max(fewest, int(_SECONDS / pair))))
        # The standard error of a median is 1.25 sigma / sqrt(n), and the quartiles lie 1.35 sigma apart.
        needed = (0.93 * (first.high - first.low) / first.speedup / _PRECISE) ** 2
        pairs = max(first.dense.repeats, int(min(needed, _CAREFUL_SECONDS / pair)))
        return 1 / compare_latency(before, after, warmup=0, repeats=pairs).speedup

    def _memory(self, dense: nn.Module, other: nn.Module, calls: Sequence[ForwardCall]) -> float:
        if self._dense_bytes is None:
            self._dense_bytes = self._peak(dense, calls)
        return self._peak(other, calls) / self._dense_bytes

    def _peak(self, net: nn.Module, calls: Sequence[ForwardCall]) -> int:
        inputs = tensors_in([(c.args, dict(c.kwargs)) for c in calls])
        return peak_bytes(self._inside(runner(net, calls)), [*tensors_of_network(net, self._beside), *inputs])

    def _inside(self, run: Callable[[], Any]) -> Callable[[], Any]:
        def run_inside() -> Any:
            with self._context():
                return run()

        return run_inside


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Random state is given back, and compiled code runs eagerly: a compilation per candidate would take minutes."""
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), eager:
        yield
