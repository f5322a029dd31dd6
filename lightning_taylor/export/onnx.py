"""ONNX, run by ONNX Runtime before it is kept."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from lightning_taylor.export.calibration import calibration_inputs
from lightning_taylor.export.comparison import rounding_of
from lightning_taylor.export.int8 import fitted, quantise, ranges_and_comparison
from lightning_taylor.export.program import program_candidates
from lightning_taylor.export.verified_write import (
    Candidate,
    Exported,
    ExportError,
    keep,
    outputs_of,
    told_shortly,
    uncompiled,
)
from lightning_taylor.modules.deep_copy import deep_copy
from lightning_taylor.utilities.calls import Inputs, cast

__all__ = [
    "export_onnx",
    "onnx_session",
]

NEEDS = ("onnx", "onnxruntime", "onnxscript")

MOST_BYTES = 2**31
"""What a file of protocol buffers can hold."""

TOLERANCES = {16: 1e-2, "int8": 0.25}
"""Precision -> largest difference from the model that is rounding: root mean square, as a share of the output's."""


def export_onnx(
    model: nn.Module,
    example_inputs: Any,
    path: str | Path,
    *,
    dynamic_batch: bool = True,
    opset: int | None = None,
    tolerance: float | None = None,
    precision: Literal[16, "int8"] | None = None,
    calibration: Tensor | Iterable[Any] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Exported:
    r"""Write a model's evaluation path as one ONNX file, weights included.

    The file is kept only if ONNX Runtime, on the CPU, gives what the model gives on ``example_inputs`` (and, for a
    dynamic batch, on one and on three examples): no output may differ by more than ``tolerance`` times the largest
    absolute value of that output. Inputs have the names of ``forward``'s arguments, outputs the keys of the dict
    that it returns, or else ``output``, ``output_1`` and so on; a dimension that counts examples is called ``batch``.

    With a ``precision`` the file is of another one than the model, and is compared with the model as it is:

    - 16: the file of ``model.half()``, whose inputs and outputs are float16. As the CPU computes in float32 between
      them, ``model.half()`` is also run by torch, so that what overflows on a GPU (above 65504) is found here.
    - ``"int8"``: inputs and outputs stay float32; weights are whole numbers of 7 bits with a factor for each channel,
      activations of 8 bits with one for each tensor, by ONNX Runtime's static quantisation (QDQ). Every other batch
      of ``calibration`` sets the ranges, and the file is compared on the rest; a single batch does both. Differences
      are much larger: see ``rounding`` in the result, and measure your metric with the file.

    There,

    .. math::  \sum_i (e_i - f_i)^2 \le t^2 \sum_i e_i^2

    has to hold over all that is compared of an output: ``e`` are the model's numbers, ``f`` the file's, ``t`` is
    ``tolerance``. Of whole numbers in an output, such as classes, a share of ``t`` may differ.

    Args:
        model: any module; its modes, buffers and hooks are left as they are.
        example_inputs: a tensor, a tuple of positional arguments or a dict of arguments by name; real ones, if the
            comparison is to mean anything.
        path: the file; its folder is made. A file of that name is replaced, atomically.
        dynamic_batch: let the file take any number of examples where the model's code allows it; what came of it is
            in the result.
        opset: the version of the ONNX operators, which is that of the file; by default the one that torch writes best.
        tolerance: see above; by default 1e-4 in float32, 1e-8 in float64 and 1e-2 in float16; with ``precision=16``
            1e-2, with ``"int8"`` 0.25, which tells nonsense (about 1) from what is coarse and nothing more.
        precision: 16 or ``"int8"``; by default the model's own.
        calibration: for ``"int8"``, real batches, some hundred examples in all, in memory at once: a DataLoader, say.
            The agreement in the result means something for examples that the model was not trained on.
            Of a list or tuple the first items are taken, as many as ``forward`` takes tensors; of a dict those with
            the names of its arguments. A tensor is all examples at once.
        metadata: what else the file says of itself, beside the versions of this package and of torch: ONNX Runtime has
            it as ``session.get_modelmeta().custom_metadata_map``.

    Returns:
        The file, the largest difference, its size and the shapes it was compared on; with ``precision`` also the
        relative difference, and the share of examples for which the top class is the same.

    Raises:
        ExportError: if the model cannot be exported, or not in this opset (the lowest that works is named), or the
            file computes something else: no file is left then. With ``precision=16`` also if the model overflows;
            with ``"int8"`` if ONNX Runtime quantises none of its operators.
        ModuleNotFoundError: if the extra ``export`` is not installed.
        ValueError: if ``example_inputs`` has no tensor, or no example; if an input or a parameter is bfloat16
            or float64, or the weights are larger than what one ONNX file can hold (2 GiB); if ``precision`` is
            another, ``calibration`` is missing, empty or of other shapes than the example, or comes without
            ``"int8"``; if the model is not float32 and is to be ``"int8"``.

    Example:
        >>> import tempfile
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
        >>> images = torch.rand(64, 3, 8, 8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     exported = export_onnx(net, images[:1], f"{folder}/net.onnx")
        ...     quantised = export_onnx(net, images[:1], f"{folder}/8.onnx", precision="int8", calibration=images)
        >>> exported.dynamic_batch, exported.max_difference < 1e-5
        (True, True)
        >>> quantised.rounding.examples, quantised.rounding.relative_error <= 0.25
        (32, True)
    """
    _require_extra()
    model, inputs = uncompiled(model), Inputs.of(example_inputs)
    _check_precision(precision, calibration)
    versions = {"lightning_taylor": version("lightning-taylor"), "torch": str(torch.__version__)}
    file = _File(Path(path).name, dynamic_batch, opset, {**versions, **(metadata or {})})
    if precision == 16:
        candidates = _in_float16(model, inputs, file, tolerance)
    elif precision == "int8":
        _check_float32(model, inputs)
        _check_representable(model, inputs)
        batches = calibration_inputs(calibration, inputs, model.forward)
        candidates = _in_int8(model, inputs, file, batches)
    else:
        candidates = _as_it_is(model, inputs, file)
    return keep(model, path, candidates, tolerance)


@dataclass(frozen=True)
class _File:
    """What is asked of a file, beside its numbers."""

    name: str
    dynamic_batch: bool
    opset: int | None
    metadata: Mapping[str, str]


def _as_it_is(model: nn.Module, inputs: Inputs, file: _File) -> list[Candidate]:
    _check_representable(model, inputs)

    def write(program: ExportedProgram, folder: Path) -> Sequence[Path]:
        _write(program, folder / file.name, file)
        return [folder / file.name]

    return program_candidates(model, inputs, file.dynamic_batch, write, _load)


def _in_float16(model: nn.Module, inputs: Inputs, file: _File, tolerance: float | None) -> list[Candidate]:
    share, what = TOLERANCES[16] if tolerance is None else tolerance, f"{type(model).__name__} in float16"
    half, half_inputs = deep_copy(model).half(), _half(inputs)
    with told_shortly(f"{what} cannot be run"):
        found = outputs_of(half, half_inputs)
    # Where it overflows: ONNX Runtime has float32 between the operators, on the CPU.
    rounding_of([outputs_of(model, inputs)], [found], [inputs.batch], share, what)

    def load(path: Path) -> Callable[[Inputs], list[Tensor]]:
        run = onnx_session(path)
        return lambda given: run(_half(given))

    return [
        replace(
            candidate,
            load=load,
            trials=[inputs.with_batch(trial.batch) for trial in candidate.trials],
            rounded=1,
            tolerance=TOLERANCES[16],
        )
        for candidate in _as_it_is(half, half_inputs, file)
    ]


def _half(inputs: Inputs) -> Inputs:
    return Inputs(cast(inputs.args, torch.float16), cast(dict(inputs.kwargs), torch.float16))


def _in_int8(model: nn.Module, inputs: Inputs, file: _File, batches: Sequence[Inputs]) -> list[Candidate]:
    ranges, comparison = ranges_and_comparison(batches)

    def write(program: ExportedProgram, folder: Path) -> Sequence[Path]:
        source = folder / "float32.onnx"
        _write(program, source, file)
        quantise(source, folder / file.name, ranges if _axes(program) else fitted(ranges, inputs.batch))
        return [folder / file.name]

    def rounded(candidate: Candidate) -> Candidate:
        held = list(comparison) if candidate.dynamic_batch else fitted(comparison, inputs.batch)
        sizes = [1, 3] if candidate.dynamic_batch else []
        trials = [*held, *(held[0].with_batch(size) for size in sizes)]
        return replace(candidate, trials=trials, rounded=len(held), tolerance=TOLERANCES["int8"])

    return [rounded(each) for each in program_candidates(model, inputs, file.dynamic_batch, write, _load)]


def _write(program: ExportedProgram, path: Path, file: _File) -> None:
    """Write a file, in the opset that is asked for and no other."""
    import onnx

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        torch.onnx.export(
            program,
            f=path,
            output_names=_output_names(program),
            dynamic_shapes=_axes(program),
            opset_version=file.opset,
            external_data=False,
            verbose=False,
        )
    model = onnx.load(str(path))
    versions = {each.domain: each.version for each in model.opset_import}
    written = versions.get("") or versions["ai.onnx"]
    if file.opset not in (None, written):
        raise ExportError(
            f"torch {torch.__version__} writes this model in opset {written} and cannot convert it to {file.opset}: "
            f"the lowest that works is {written}"
        )
    onnx.helper.set_model_props(model, dict(file.metadata))
    onnx.save(model, str(path))


def onnx_session(path: str | Path, threads: int | None = None) -> Callable[[Inputs], list[Tensor]]:
    """An ONNX file as a function of ``Inputs``, run by ONNX Runtime on the CPU.

    Args:
        path: the file.
        threads: how many; by default as many as torch uses.

    Raises:
        ModuleNotFoundError: if the extra ``export`` is not installed.
    """
    _require_extra()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(inputs: Inputs) -> list[Tensor]:
        arrays = [tensor.detach().cpu().numpy() for tensor in inputs.tensors]
        if len(arrays) != len(names):
            raise ExportError(f"the file takes {', '.join(names) or 'nothing'}, the model {len(arrays)} tensors")
        return [torch.from_numpy(array) for array in session.run(None, dict(zip(names, arrays, strict=True)))]

    return run


def _load(path: Path) -> Callable[[Inputs], list[Tensor]]:
    return onnx_session(path)


def _axes(program: ExportedProgram) -> list[dict[int, str]] | None:
    """A name for the dimension of each input that may have any length, which torch calls ``s20`` or so."""
    nodes = {node.name: node for node in program.graph.find_nodes(op="placeholder")}
    given = [nodes[name].meta["val"] for name in program.graph_signature.user_inputs if name in nodes]
    tensors = [value for value in given if isinstance(value, Tensor)]
    axes = [{0: "batch"} if t.ndim and isinstance(t.shape[0], torch.SymInt) else {} for t in tensors]
    return axes if any(axes) else None


def _output_names(program: ExportedProgram) -> list[str]:
    """The keys on the way to each output, ``logits`` or ``boxes_0``; ``output`` where there are none."""
    spec = program.call_spec.out_spec
    assert spec is not None
    leaves = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    names = []
    for index, (keys, _) in enumerate(pytree.tree_flatten_with_path(leaves)[0]):
        words = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in keys]
        named = any(not word.isdecimal() for word in words)
        names.append("_".join(words) if named else f"output_{index}" if index else "output")
    return [f"{name}_out" if name in program.graph_signature.user_inputs else name for name in names]


def _require_extra() -> None:
    if missing := [name for name in NEEDS if find_spec(name) is None]:
        raise ModuleNotFoundError(f"missing {', '.join(missing)}: pip install 'lightning-taylor[export]'")


def _check_precision(precision: Any, calibration: Any) -> None:
    if precision is not None and precision not in list(TOLERANCES):
        raise ValueError(f"precision={precision!r} is none of 16, 'int8' and None, which is the model's own")
    if calibration is not None and precision != "int8":
        raise ValueError(
            f"calibration= sets the ranges of whole numbers: give precision='int8' with it, not {precision}"
        )


def _check_float32(model: nn.Module, inputs: Inputs) -> None:
    tensors = [*model.parameters(), *model.buffers(), *inputs.tensors]
    if wrong := {t.dtype for t in tensors if t.is_floating_point()} - {torch.float32}:
        raise ValueError(
            f"int8 is made of float32, and here is {', '.join(map(str, wrong))}: export model.float(), float32 inputs"
        )


def _check_representable(model: nn.Module, inputs: Inputs) -> None:
    tensors = [*model.parameters(), *model.buffers(), *inputs.tensors]
    if wrong := {tensor.dtype for tensor in tensors} & {torch.bfloat16, torch.float64}:
        raise ValueError(
            f"ONNX Runtime has no convolution in {', '.join(map(str, wrong))} on the CPU: export model.float() and "
            "float32 inputs, or use export_program"
        )
    if (size := sum(tensor.nbytes for tensor in tensors)) >= MOST_BYTES:
        raise ValueError(f"the weights take {size / 2**30:.1f} GiB and one ONNX file holds 2: use export_program")
