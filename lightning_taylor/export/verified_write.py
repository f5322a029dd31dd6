"""Nothing is kept that was not compared: a file is written aside, loaded back, run, and only then given its name."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_taylor.errors import ExportError
from lightning_taylor.export.comparison import Rounding, largest_difference, rounding_of
from lightning_taylor.utilities.calls import Inputs

__all__ = [
    "Candidate",
    "ExportError",
    "Exported",
    "evaluating",
    "keep",
    "largest_difference",
    "outputs_of",
    "told_shortly",
    "uncompiled",
]


@dataclass(frozen=True)
class Exported:
    """A file that was compared with the model.

    Attributes:
        files: what was written; the first one is the one that was asked for.
        max_difference: largest absolute difference between an output of the file and the model's, in its own units.
        bytes: size of all files.
        inputs: shapes of the tensors that both were run on.
        dynamic_batch: whether the file takes any number of examples, which was tried, or only as many as these.
        rounding: what a lower precision than the model's costs; None for a file in the model's own.
    """

    files: tuple[Path, ...]
    max_difference: float
    bytes: int
    inputs: tuple[tuple[int, ...], ...]
    dynamic_batch: bool
    rounding: Rounding | None = None

    @property
    def path(self) -> Path:
        """The file that was asked for."""
        return self.files[0]

    def __str__(self) -> str:
        batch = "any batch size" if self.dynamic_batch else "this batch size only"
        shapes = ", ".join("x".join(map(str, shape)) for shape in self.inputs)
        size = f"{self.bytes / 1e6:.3g} MB"
        rounding = f", {self.rounding}" if self.rounding else ""
        return f"{self.path}: {size}, inputs {shapes} ({batch}), max difference {self.max_difference:.2g}{rounding}"


@dataclass(frozen=True)
class Candidate:
    """One way to write a file.

    Attributes:
        write: writes below a folder that it is given; the first file returned is the one that is asked for.
        load: from that first file to a function that runs it on inputs and returns its outputs.
        trials: the inputs to compare on.
        dynamic_batch: whether this way fits any number of examples.
        rounded: for a file of a lower precision than the model's, how many of the trials hold examples that no other
            trial repeats; those come first. None for a file that computes what the model does to the last digits.
        tolerance: what is allowed of such a file, unless the user says otherwise.
    """

    write: Callable[[Path], Sequence[Path]]
    load: Callable[[Path], Callable[[Inputs], Any]]
    trials: Sequence[Inputs]
    dynamic_batch: bool
    rounded: int | None = None
    tolerance: float = 1e-2


def keep(model: nn.Module, path: str | Path, candidates: Sequence[Candidate], tolerance: float | None) -> Exported:
    """Write the first candidate that computes what the model computes.

    Args:
        model: what the file must agree with, in its evaluation mode.
        path: where the file goes; its folder is made.
        candidates: ways to write it, the best one first.
        tolerance: as for ``largest_difference``; by default that of the candidate if it is rounded.

    Raises:
        ExportError: with the last candidate's reason; ``path`` is then as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for candidate in candidates:
        try:
            return _keep(model, path, candidate, tolerance)
        except ExportError:
            if candidate is candidates[-1]:
                raise
    raise ExportError(f"there is no way to write {path.name}")


def _keep(model: nn.Module, path: Path, candidate: Candidate, tolerance: float | None) -> Exported:
    # Aside, but in the same folder: a rename is atomic only within one file system.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        with told_shortly(f"{type(model).__name__} cannot be written as {path.name}"):
            files = candidate.write(Path(folder))
        with told_shortly(f"{path.name} was written and cannot be run"):
            run = candidate.load(files[0])
            found = [run(trial) for trial in candidate.trials]
        expected = [outputs_of(model, trial) for trial in candidate.trials]
        difference, rounding = _compare(candidate, expected, found, tolerance, path.name)
        kept = tuple(path.parent / file.name for file in files)
        for file, final in zip(files, kept, strict=True):
            os.replace(file, final)
    size = sum(file.stat().st_size for file in kept)
    return Exported(kept, difference, size, candidate.trials[0].shapes, candidate.dynamic_batch, rounding)


def _compare(
    candidate: Candidate, expected: Sequence[Any], found: Sequence[Any], tolerance: float | None, what: str
) -> tuple[float, Rounding | None]:
    if candidate.rounded is None:
        pairs = zip(expected, found, strict=True)
        return max(largest_difference(e, f, tolerance, what) for e, f in pairs), None
    examples = [trial.batch for trial in candidate.trials[: candidate.rounded]]
    return rounding_of(expected, found, examples, candidate.tolerance if tolerance is None else tolerance, what)


def uncompiled(model: nn.Module) -> nn.Module:
    """The module that ``torch.compile`` wrapped; any other one itself."""
    return getattr(model, "_orig_mod", model)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, as plain operators; every module's mode is given back."""
    modes = [(module, module.training) for module in model.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    # To import the compiler takes seconds, and a model that was compiled has imported it.
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    model.eval()
    # The fused attention of nn.TransformerEncoder has no counterpart in other formats.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), eager:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, training in modes:
            module.training = training


def outputs_of(model: nn.Module, inputs: Inputs) -> Any:
    """What a model gives in evaluation mode."""
    with evaluating(model):
        return inputs.run(model)


@contextmanager
def told_shortly(what: str) -> Iterator[None]:
    """Other libraries' exceptions, of any class and of any length, in a line."""
    try:
        yield
    except (ExportError, ImportError):
        raise
    except Exception as error:
        said = next((line for line in str(error).splitlines() if line.strip()), "")
        raise ExportError(f"{what}: {type(error).__name__}: {said.strip()}") from error
