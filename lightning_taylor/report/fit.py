"""What a fit has to say for itself: metrics before and after, a measured latency, a table and ``pruning.json``."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from lightning_taylor.graph.channels import ChannelGraph
from lightning_taylor.graph.copying import batch_size, private_copy
from lightning_taylor.graph.resize import follow_shapes
from lightning_taylor.graph.trace import ForwardCall, few_of
from lightning_taylor.pruner import Pruner
from lightning_taylor.report.latency import LatencyComparison, compare_latency
from lightning_taylor.report.summary import PruningSummary
from lightning_taylor.report.table import summary_tables

__all__ = ["FitReport"]

_LARGEST_BATCH = 16


class FitReport:
    """Collects during a fit, and shows at its end."""

    def __init__(self) -> None:
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self.curve: list[dict[str, float]] = []
        self._calls: list[ForwardCall] = []
        self._batch = 1

    def begin(self, calls: Sequence[ForwardCall]) -> None:
        """Keep one example of what the model is called with, for the latency at the end."""
        batch = batch_size([(c.args, dict(c.kwargs)) for c in calls])
        self._calls = [few_of(c, batch) for c in calls]
        self._batch = min(batch, _LARGEST_BATCH)

    def note(self, metrics: Mapping[str, Tensor], step: int, pruner: Pruner) -> None:
        """Take down a validation's metrics; those of the last one before the first event are the dense ones."""
        values = {
            name: float(value)
            for name, value in metrics.items()
            if not name.startswith(("pruning/", "train")) and not name.endswith("_step") and name != "flops"
        }
        self.after = values
        if not pruner.record.events:
            self.before = values
        self.curve.append({"step": step, "flops": pruner.cost.flops, **values})

    def show(self, pruner: Pruner, folder: str | Path, *, measure_latency: bool) -> PruningSummary:
        """Print the table and write ``pruning.json`` into a folder."""
        summary = PruningSummary.of(
            pruner.graph,
            pruner.options.target,
            record=pruner.record,
            unscored=pruner.blind,
            metrics_before=self.before,
            metrics_after=self.after,
            latency=self._latency(pruner) if measure_latency and pruner.record.events else None,
        )
        path = Path(folder) / "pruning.json"
        summary.write_json(path)
        console = Console(file=sys.stdout, soft_wrap=False)
        console.print(summary_tables(summary))
        console.print(f"The same as data: {path}", highlight=False, soft_wrap=True)
        return summary

    def _latency(self, pruner: Pruner) -> LatencyComparison | None:
        """The evaluation path of the pruned net and of one with the dense widths, run in turn."""
        if not self._calls:
            return None
        pruned = private_copy(pruner.model).eval()
        dense = _grown(pruned, pruner.graph)
        calls = [_repeated(call, self._batch, next(pruned.parameters())) for call in self._calls]
        return compare_latency(_runner(dense, calls), _runner(pruned, calls), warmup=2, repeats=10)


def _runner(net: nn.Module, calls: Sequence[ForwardCall]) -> Callable[[], Any]:
    def run() -> Any:
        return [net.get_submodule(c.module)(*c.args, **c.kwargs) for c in calls]

    return run


def _grown(pruned: nn.Module, graph: ChannelGraph) -> nn.Module:
    """A copy with the dense model's shapes; its values are arbitrary, since time does not depend on them."""
    net = copy.deepcopy(pruned)
    tensors = dict(net.named_parameters()) | dict(net.named_buffers())
    with torch.no_grad():
        for name, shape in graph.dense.items():
            tensor = tensors.get(name)
            if tensor is not None and tuple(tensor.shape) != shape:
                new = torch.rand(shape, device=tensor.device).to(tensor.dtype)
                channels_last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
                tensor.set_(new.contiguous(memory_format=torch.channels_last) if channels_last else new)  # type: ignore
    for module in net.modules():
        follow_shapes(module)
    return net


def _repeated(call: ForwardCall, batch: int, like: Tensor) -> ForwardCall:
    def repeat(value: Any) -> Any:
        if isinstance(value, Tensor):
            value = value.detach().to(like.device, like.dtype if value.is_floating_point() else value.dtype)
            return value.repeat(batch, *[1] * (value.ndim - 1)) if value.ndim and value.shape[0] == 1 else value
        if isinstance(value, dict):
            return {k: repeat(v) for k, v in value.items()}
        if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
            return type(value)(repeat(v) for v in value)
        return value

    return ForwardCall(call.module, repeat(call.args), repeat(dict(call.kwargs)))
