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
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_taylor.errors import ExportError
from lightning_taylor.utilities.calls import Inputs

__all__ = [
    "Candidate",
    "ExportError",
    "Exported",
    "evaluating",
    "keep",
    "largest_difference",
    "uncompiled",
]

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference that is rounding and no mistake, as a share of the output's largest absolute value."""


@dataclass(frozen=True)
class Exported:
    """A file that was compared with the model.

    Attributes:
        files: what was written; the first one is the one that was asked for.
        max_difference: largest absolute difference between an output of the file and the model's, in its own units.
        bytes: size of all files.
        inputs: shapes of the tensors that both were run on.
        dynamic_batch: whether the file takes any number of examples, which was tried, or only as many as these.
    """

    files: tuple[Path, ...]
    max_difference: float
    bytes: int
    inputs: tuple[tuple[int, ...], ...]
    dynamic_batch: bool

    @property
    def path(self) -> Path:
        """The file that was asked for."""
        return self.files[0]

    def __str__(self) -> str:
        batch = "any batch size" if self.dynamic_batch else "this batch size only"
        shapes = ", ".join("x".join(map(str, shape)) for shape in self.inputs)
        size = f"{self.bytes / 1e6:.3g} MB"
        return f"{self.path}: {size}, inputs {shapes} ({batch}), max difference {self.max_difference:.2g}"


@dataclass(frozen=True)
class Candidate:
    """One way to write a file.

    Attributes:
        write: writes below a folder that it is given; the first file returned is the one that is asked for.
        load: from that first file to a function that runs it on inputs and returns its outputs.
        trials: the inputs to compare on.
        dynamic_batch: whether this way fits any number of examples.
    """

    write: Callable[[Path], Sequence[Path]]
    load: Callable[[Path], Callable[[Inputs], Any]]
    trials: Sequence[Inputs]
    dynamic_batch: bool


def keep(model: nn.Module, path: str | Path, candidates: Sequence[Candidate], tolerance: float | None) -> Exported:
    """Write the first candidate that computes what the model computes.

    Args:
        model: what the file must agree with, in its evaluation mode.
        path: where the file goes; its folder is made.
        candidates: ways to write it, the best one first.
        tolerance: as for ``largest_difference``.

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
        with _reason(f"{type(model).__name__} cannot be written as {path.name}"):
            files = candidate.write(Path(folder))
        with _reason(f"{path.name} was written and cannot be run"):
            run = candidate.load(files[0])
            found = [run(trial) for trial in candidate.trials]
        expected = [_outputs(model, trial) for trial in candidate.trials]
        pairs = zip(expected, found, strict=True)
        difference = max(largest_difference(e, f, tolerance, path.name) for e, f in pairs)
        kept = tuple(path.parent / file.name for file in files)
        for file, final in zip(files, kept, strict=True):
            os.replace(file, final)
    size = sum(file.stat().st_size for file in kept)
    return Exported(kept, difference, size, candidate.trials[0].shapes, candidate.dynamic_batch)


def largest_difference(expected: Any, found: Any, tolerance: float | None, what: str = "the file") -> float:
    r"""Largest absolute difference between two nestings of tensors, if it is small enough.

    .. math::  \max_i |e_i - f_i| \le t \max_i |e_i|

    for each floating-point tensor (``t`` alone where all of ``e`` is zero), with NaN and infinities at the same
    places; other tensors have to be equal.

    Args:
        expected: the model's outputs.
        found: the file's, nested in any way, in the same order.
        tolerance: ``t``; by default 1e-4 for float32, 1e-8 for float64, 1e-2 for float16 and 5e-2 for bfloat16.
        what: the name of the file, for the error.

    Raises:
        ExportError: naming the largest difference.

    Example:
        >>> largest_difference(torch.tensor([1.0, 100.0]), {"out": torch.tensor([1.0, 100.001])}, None) < 0.002
        True
        >>> largest_difference(torch.ones(2), [torch.tensor([1.0, 1.5])], 0.1)
        Traceback (most recent call last):
        lightning_taylor.errors.ExportError: the file differs from the model by 0.5 where 0.1 is allowed ...
    """
    old, new = _tensors(expected), _tensors(found)
    if [tuple(t.shape) for t in old] != [tuple(t.shape) for t in new]:
        shapes = [[tuple(t.shape) for t in side] for side in (new, old)]
        raise ExportError(f"{what} gives outputs of shapes {shapes[0]}, the model {shapes[1]}")
    return max((_difference(e, f, tolerance, what) for e, f in zip(old, new, strict=True)), default=0.0)


def _difference(expected: Tensor, found: Tensor, tolerance: float | None, what: str) -> float:
    if not expected.is_floating_point():
        if not torch.equal(expected, found.to(expected.dtype)):
            raise ExportError(f"{what} gives another {expected.dtype} output than the model")
        return 0.0
    share = TOLERANCE.get(expected.dtype, 1e-2) if tolerance is None else tolerance
    old, new = expected.double(), found.double()
    finite = old.isfinite()
    if not torch.equal(old[~finite].nan_to_num(), new[~finite].nan_to_num()) or not bool(new[finite].isfinite().all()):
        raise ExportError(f"{what} gives NaN or infinity where the model does not, or the other way round")
    if not bool(finite.any()):
        return 0.0
    difference = float((old[finite] - new[finite]).abs().max())
    limit = share * (float(old[finite].abs().max()) or 1.0)
    if difference > limit:
        raise ExportError(
            f"{what} differs from the model by {difference:.3g} where {limit:.3g} is allowed ({share:g} of the "
            "largest output); if that is rounding, give a larger tolerance"
        )
    return difference


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


def _outputs(model: nn.Module, inputs: Inputs) -> Any:
    with evaluating(model):
        return inputs.run(model)


def _tensors(values: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(values)
    return [leaf.detach().cpu() for leaf in leaves if isinstance(leaf, Tensor)]


@contextmanager
def _reason(what: str) -> Iterator[None]:
    """Other libraries' exceptions, of any class and of any length, in a line."""
    try:
        yield
    except (ExportError, ImportError):
        raise
    except Exception as error:
        said = next((line for line in str(error).splitlines() if line.strip()), "")
        raise ExportError(f"{what}: {type(error).__name__}: {said.strip()}") from error
