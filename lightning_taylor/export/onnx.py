"""ONNX, run by ONNX Runtime before it is kept."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from lightning_taylor.export.program import program_candidates
from lightning_taylor.export.verified_write import Exported, ExportError, keep, uncompiled
from lightning_taylor.utilities.calls import Inputs

__all__ = [
    "export_onnx",
    "onnx_session",
]

NEEDS = ("onnx", "onnxruntime", "onnxscript")

MOST_BYTES = 2**31
"""What a file of protocol buffers can hold."""


def export_onnx(
    model: nn.Module,
    example_inputs: Any,
    path: str | Path,
    *,
    dynamic_batch: bool = True,
    opset: int | None = None,
    tolerance: float | None = None,
) -> Exported:
    r"""Write a model's evaluation path as one ONNX file, weights included.

    The file is kept only if ONNX Runtime, on the CPU, gives what the model gives on ``example_inputs`` (and, for a
    dynamic batch, on one and on three examples): no output may differ by more than ``tolerance`` times the largest
    absolute value of that output. Inputs have the names of ``forward``'s arguments, outputs the keys of the dict
    that it returns, or else ``output``, ``output_1`` and so on; a dimension that counts examples is called ``batch``.

    Args:
        model: any module; its modes, buffers and hooks are left as they are.
        example_inputs: a tensor, a tuple of positional arguments or a dict of arguments by name; real ones, if the
            comparison is to mean anything.
        path: the file; its folder is made. A file of that name is replaced, atomically.
        dynamic_batch: let the file take any number of examples where the model's code allows it; what came of it is
            in the result.
        opset: the version of the ONNX operators, which is that of the file; by default the one that torch writes best.
        tolerance: see above; by default 1e-4 in float32, 1e-8 in float64 and 1e-2 in float16.

    Returns:
        The file, the largest difference, its size and the shapes it was compared on.

    Raises:
        ExportError: if the model cannot be exported, or not in this opset (the lowest that works is named), or the
            file computes something else: no file is left then.
        ModuleNotFoundError: if the extra ``export`` is not installed.
        ValueError: if ``example_inputs`` has no tensor, or no example; if an input or a parameter is bfloat16
            or float64, or the weights are larger than what one ONNX file can hold (2 GiB).

    Example:
        >>> import tempfile
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     exported = export_onnx(net, torch.rand(1, 3, 8, 8), f"{folder}/net.onnx")
        >>> exported.dynamic_batch, exported.max_difference < 1e-5
        (True, True)
    """
    _require_extra()
    model, inputs = uncompiled(model), Inputs.of(example_inputs)
    _check_representable(model, inputs)
    name = Path(path).name

    def write(program: ExportedProgram, folder: Path) -> Sequence[Path]:
        written = _write(program, folder / name, opset)
        if opset not in (None, written):
            raise ExportError(
                f"torch {torch.__version__} writes this model in opset {written} and cannot convert it to {opset}: "
                f"the lowest that works is {written}"
            )
        return [folder / name]

    return keep(model, path, program_candidates(model, inputs, dynamic_batch, write, _load), tolerance)


def _write(program: ExportedProgram, path: Path, opset: int | None) -> int:
    """Write a file and return its opset, which is torch's own where torch cannot convert to the one asked for."""
    import onnx

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        torch.onnx.export(
            program,
            f=path,
            output_names=_output_names(program),
            dynamic_shapes=_axes(program),
            opset_version=opset,
            external_data=False,
            verbose=False,
        )
    versions = {each.domain: each.version for each in onnx.load(str(path)).opset_import}
    return versions.get("") or versions["ai.onnx"]


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


def _check_representable(model: nn.Module, inputs: Inputs) -> None:
    tensors = [*model.parameters(), *model.buffers(), *inputs.tensors]
    if wrong := {tensor.dtype for tensor in tensors} & {torch.bfloat16, torch.float64}:
        raise ValueError(
            f"ONNX Runtime has no convolution in {', '.join(map(str, wrong))} on the CPU: export model.float() and "
            "float32 inputs, or use export_program"
        )
    if (size := sum(tensor.nbytes for tensor in tensors)) >= MOST_BYTES:
        raise ValueError(f"the weights take {size / 2**30:.1f} GiB and one ONNX file holds 2: use export_program")
