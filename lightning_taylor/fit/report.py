"""What a fit has to say for itself: metrics, scores, what was measured, a table, ``pruning.json`` and a page."""

from __future__ import annotations

import itertools
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from lightning_taylor.fit.pruner import Pruner
from lightning_taylor.measure.environment import machine, peak_memory, state_dict_bytes
from lightning_taylor.measure.latency import LatencyComparison, compare_latency
from lightning_taylor.measure.network_only import calls_of_network, modules_beside, tensors_of_network
from lightning_taylor.modules.model_copy import private_copy
from lightning_taylor.modules.resize import with_shapes
from lightning_taylor.report.commands import config_beside, shown_commands
from lightning_taylor.report.html import write_page
from lightning_taylor.report.notes import ReportNotes
from lightning_taylor.report.summary import PruningSummary
from lightning_taylor.report.summary_table import summary_tables
from lightning_taylor.utilities.call_template import call_template
from lightning_taylor.utilities.calls import ForwardCall, copied_like, examples_in, runner, tensors_in, with_examples

__all__ = [
    "QUANTILES",
    "FitReport",
    "class_path",
    "free_paths",
    "quantiles",
]

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
"""Of the scores: enough for a box with whiskers."""

_LARGEST_BATCH = 16


def quantiles(score_C: Tensor) -> list[float]:
    """The least score, those at 5, 25, 50, 75 and 95 %, and the greatest.

    Args:
        score_C: shape ``(C,)``, at least one channel, any float dtype.

    Example:
        >>> quantiles(torch.arange(101.0))
        [0.0, 5.0, 25.0, 50.0, 75.0, 95.0, 100.0]
    """
    at_Q = torch.tensor(QUANTILES, dtype=torch.float64)
    return torch.quantile(score_C.detach().to("cpu", torch.float64), at_Q).tolist()


class FitReport:
    """Collects during a fit, and shows at its end.

    Args:
        baseline: metric -> its value of the dense model, where the user knows it.
    """

    def __init__(self, baseline: Mapping[str, float] | None = None) -> None:
        self.notes = ReportNotes({}, {}, [], baseline=dict(baseline or {}))
        self._calls: list[ForwardCall] = []

    def begin(self, calls: Sequence[ForwardCall], batch: int | None = None) -> None:
        """Keep what the model is called with, for the latency at the end; a checkpoint notes it of one example.

        Args:
            calls: of the model.
            batch: examples of each that count; as many as it has if None.
        """
        self.notes.batch = batch or examples_in(calls)
        self._calls = with_examples(calls, min(self.notes.batch, _LARGEST_BATCH))
        one = with_examples(calls, 1)
        self.notes.called_with = [template for call in one if (template := call_template(call))]

    def note(self, metrics: Mapping[str, float], step: int, pruner: Pruner) -> None:
        """Take down what a validation logged; the last one before the first event is of the dense model."""
        self.notes.after = dict(metrics)
        if not pruner.record.events:
            self.notes.before = dict(metrics)
        row = {"step": step, "flops": pruner.cost.flops}
        # A metric of the user's may have the name of a column of ours.
        self.notes.curve.append({**row, **{f"{k} (logged)" if k in row else k: value for k, value in metrics.items()}})

    def note_scores(self, scores: Mapping[str, Tensor]) -> None:
        """Take down what an event was decided by; a no-op without scores, as on any rank but the first.

        Args:
            scores: group name -> shape ``(C,)``, normalised.
        """
        if not scores:
            return
        last = {name: quantiles(score_C) for name, score_C in scores.items()}
        self.notes.scores = {"first": self.notes.scores.get("first", last), "last": last}

    def note_oracle(self, step: int, correlation: float) -> None:
        """Take down how well the scores of an event ranked some channels."""
        self.notes.oracle.append({"step": step, "correlation": correlation})

    def load(self, notes: ReportNotes) -> None:
        """Go on from the notes of a checkpoint; the user's own baseline is kept."""
        self.notes = replace(notes, baseline=self.notes.baseline or notes.baseline)

    def show(
        self,
        pruner: Pruner,
        data: Path,
        page: Path,
        *,
        measure_latency: bool,
        compiled: int = 0,
        device: torch.device | None = None,
        checkpoint: str = "",
    ) -> PruningSummary:
        """Print the table, and write it as data and as a page.

        A network that took hours is there by now: what cannot be measured, printed or written is a warning.

        Args:
            pruner: after its last event.
            data: usually ``pruning.json``; its folder is made if missing.
            page: usually ``pruning.html``.
            measure_latency: whether the dense and the pruned network are timed.
            compiled: how many graphs ``torch.compile`` made.
            device: to measure on; where the model is, if None.
            checkpoint: the file that holds the model; empty if there is none.
        """
        latency, environment = self._measured(pruner, device, measure_latency)
        summary = self.notes.summary(
            pruner.graph,
            pruner.options.target,
            pruner.record,
            unscored={**pruner.blind, **pruner.unscored},
            latency=latency,
            compiled_graphs=compiled,
            environment=environment,
            checkpoint=checkpoint,
            config=config_beside(checkpoint),
            model=class_path(pruner.model),
        )
        console = Console(file=sys.stdout, soft_wrap=False)
        with _no_loss("the pruning report could not be printed"):
            console.print(summary_tables(summary))
        with _no_loss(f"the pruning report could not be written to {data}"):
            summary.write_json(data)
            console.print(f"The same as data: {data}", highlight=False, soft_wrap=True)
        with _no_loss(f"the pruning report could not be written to {page}"):
            write_page(summary, page)
            console.print(f"As a page: {page}", highlight=False, soft_wrap=True)
        if commands := shown_commands(summary):
            console.print(commands, highlight=False, markup=False, soft_wrap=True)
        return summary

    def _measured(
        self, pruner: Pruner, device: torch.device | None, latency: bool
    ) -> tuple[LatencyComparison | None, dict[str, Any]]:
        """The evaluation path of the pruned net and of one with the dense widths: sizes, memory, and time in turns."""
        first = next(pruner.model.parameters())
        device = device or first.device
        about = machine(device)
        if not pruner.record.events:
            return None, about
        with _no_loss("the pruned network could not be measured"):
            pruned = private_copy(pruner.model).eval().to(device)
            dense = with_shapes(pruned, pruner.graph.dense, pruner.graph.followers)
            nets = {"dense": dense, "pruned": pruned}
            about["state_dict_bytes"] = {name: state_dict_bytes(net) for name, net in nets.items()}
            if not self._calls:
                return None, about
            # Not a teacher's, nor what is out of scope: a target counts the network alone, too.
            beside = modules_beside(pruned, pruner.graph.parameters)
            calls = copied_like(calls_of_network(self._calls, beside), next(pruned.parameters()))
            runs = {name: runner(net, calls) for name, net in nets.items()}
            inputs = list(tensors_in([(call.args, dict(call.kwargs)) for call in calls]))
            about["batch_size"] = examples_in(calls)
            with _own_warnings_only():
                held = {name: [*tensors_of_network(net, beside), *inputs] for name, net in nets.items()}
                about["peak_bytes"] = {name: peak_memory(run, held[name]) for name, run in runs.items()}
            if latency:
                with _no_loss("the latency of the pruned network could not be measured"), _own_warnings_only():
                    return compare_latency(runs["dense"], runs["pruned"], warmup=2, repeats=10), about
        return None, about


def free_paths(folder: Path) -> tuple[Path, Path]:
    """Return where a report goes: ``pruning.json`` and ``pruning.html``, or ``pruning-v1.json`` and so on.

    An earlier report in the folder stays as it is; Lightning names a checkpoint beside an earlier one in the same way.

    Example:
        >>> [path.name for path in free_paths(Path("no/such/folder"))]
        ['pruning.json', 'pruning.html']
    """
    names = itertools.chain(["pruning"], (f"pruning-v{version}" for version in itertools.count(1)))
    pairs = ((folder / f"{name}.json", folder / f"{name}.html") for name in names)
    return next(pair for pair in pairs if not any(map(os.path.exists, pair)))


def class_path(model: object) -> str:
    """Return the import path of an object's class, also if its script is run; empty in a notebook, which has none."""
    kind = type(model)
    module = _name_of_main() if kind.__module__ == "__main__" else kind.__module__
    return f"{module}.{kind.__qualname__}" if module else ""


def _name_of_main() -> str:
    """What the script that runs would be imported as, from its folder; after ``python -m``, from where that was."""
    main = sys.modules["__main__"]
    if (spec := getattr(main, "__spec__", None)) is not None:
        return str(spec.name)
    name = Path(getattr(main, "__file__", None) or "").stem
    return name if name.isidentifier() else ""


@contextmanager
def _own_warnings_only() -> Iterator[None]:
    """The model's warnings come in the user's passes; one about missing gradients would be false here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _no_loss(what: str) -> Iterator[None]:
    """Any error is a warning that says what is missing."""
    try:
        yield
    except Exception as error:
        warnings.warn(f"{what}: {type(error).__name__}: {error}", stacklevel=4)  # of whoever shows the report
