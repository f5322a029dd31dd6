"""``torch.export``: the program of a model, for any number of examples where it can be had."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram, ShapesCollection

from lightning_taylor.export.verified_write import Candidate, Exported, evaluating, keep, uncompiled
from lightning_taylor.utilities.calls import Inputs

__all__ = ["export_program", "program_candidates", "program_of", "silent"]


def export_program(
    model: nn.Module,
    example_inputs: Any,
    path: str | Path,
    *,
    dynamic_batch: bool = True,
    tolerance: float | None = None,
) -> Exported:
    r"""Write a model's evaluation path as a ``torch.export`` program that runs without the model's code.

    The file is kept only if, loaded back with ``torch.export.load``, it gives what the model gives on
    ``example_inputs`` (and, for a dynamic batch, on one and on three examples): no output may differ by more than
    ``tolerance`` times the largest absolute value of that output. The program computes on the model's device.

    Args:
        model: any module; its modes, buffers and hooks are left as they are.
        example_inputs: a tensor, a tuple of positional arguments or a dict of arguments by name; real ones, if the
            comparison is to mean anything.
        path: the file, ``*.pt2`` by custom; its folder is made. A file of that name is replaced, atomically.
        dynamic_batch: let the program take any number of examples where the model's code allows it; what came of it
            is in the result.
        tolerance: see above; by default 1e-4 in float32, 1e-8 in float64, 1e-2 in float16 and 5e-2 in bfloat16.

    Returns:
        The file, the largest difference, its size and the shapes it was compared on.

    Raises:
        ExportError: if the model cannot be exported, or the file computes something else: no file is left then.
        ValueError: if ``example_inputs`` has no tensor, or no example.

    Example:
        >>> import tempfile
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     exported = export_program(net, torch.rand(1, 3, 8, 8), f"{folder}/net.pt2")
        ...     y = torch.export.load(exported.path).module()(torch.rand(5, 3, 8, 8))
        >>> y.shape, exported.max_difference, exported.inputs
        (torch.Size([5, 4, 6, 6]), 0.0, ((1, 3, 8, 8),))
    """
    model, name = uncompiled(model), Path(path).name

    def write(program: ExportedProgram, folder: Path) -> Sequence[Path]:
        # torch insists on its own ending; the user's name comes back with the rename.
        written = folder / "program.pt2"
        torch.export.save(program, written)
        return [written.rename(folder / name)]

    candidates = program_candidates(model, Inputs.of(example_inputs), dynamic_batch, write, _load)
    return keep(model, path, candidates, tolerance)


def program_candidates(
    model: nn.Module,
    inputs: Inputs,
    dynamic_batch: bool,
    write: Callable[[ExportedProgram, Path], Sequence[Path]],
    load: Callable[[Path], Callable[[Inputs], Any]],
) -> list[Candidate]:
    """A file of the model's program for any number of examples, if asked for, else for exactly these."""

    def candidate(dynamic: bool) -> Candidate:
        def write_program(folder: Path) -> Sequence[Path]:
            with silent():
                return write(program_of(model, inputs, dynamic), folder)

        def load_program(path: Path) -> Callable[[Inputs], Any]:
            with silent():
                return load(path)

        trials = [inputs, inputs.with_batch(1), inputs.with_batch(3)] if dynamic else [inputs]
        return Candidate(write_program, load_program, trials, dynamic)

    return [candidate(True), candidate(False)] if dynamic_batch else [candidate(False)]


def program_of(model: nn.Module, inputs: Inputs, dynamic_batch: bool) -> ExportedProgram:
    """Trace the evaluation path of a model."""
    shapes = None
    if dynamic_batch:
        # The trace takes a length of 0 or 1 for a constant.
        inputs = inputs.with_batch(max(2, inputs.batch))
        shapes, batch = ShapesCollection(), Dim("batch")
        for tensor in inputs.tensors:
            if inputs.counts_examples(tensor):
                shapes[tensor] = {0: batch}
    with evaluating(model):
        return torch.export.export(model, inputs.args, dict(inputs.kwargs), dynamic_shapes=shapes, strict=False)


def _load(path: Path) -> Callable[[Inputs], Any]:
    program = torch.export.load(path).module()
    return lambda inputs: inputs.run(program)


@contextmanager
def silent() -> Iterator[None]:
    """Without the exporters' warnings and logs: what they doubt is settled by the comparison."""
    quiet = [logging.getLogger(name) for name in ("torch.export", "torch.onnx", "onnxscript", "onnx_ir")]
    levels = [log.level for log in quiet]
    try:
        for log in quiet:
            log.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(quiet, levels, strict=True):
            log.setLevel(level)
