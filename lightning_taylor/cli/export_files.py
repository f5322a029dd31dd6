"""What ``lightning-taylor export`` writes once its options are read: here torch and Lightning are imported."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from lightning_taylor.cli.calibration import Calibration, find_calibration
from lightning_taylor.cli.checkpoint_model import Trained, read_trained
from lightning_taylor.cli.exit import debugging, fail
from lightning_taylor.cli.find_config import find_config
from lightning_taylor.cli.output import check_outputs
from lightning_taylor.export.onnx import export_onnx
from lightning_taylor.export.program import export_program
from lightning_taylor.export.state_dict import export_state_dict, files_of, torchvision_builders
from lightning_taylor.export.verified_write import Exported, ExportError, evaluating, largest_difference

__all__ = ["export"]


def export(asked: argparse.Namespace, output: Path) -> None:
    """Read the checkpoint, write the file that is asked for, and say what was written."""
    files = files_of(output) if asked.format == "state_dict" else [output]
    check_outputs(files, asked.checkpoint, overwrite=asked.overwrite)
    config = find_config(asked)
    trained = read_trained(asked.checkpoint, asked, config)
    calibration = find_calibration(asked.calibration, config) if asked.precision == "int8" else None
    share = asked.tolerance
    writers: dict[str, Callable[[], Exported]] = {
        "onnx": lambda: _export_onnx(trained, output, asked, calibration),
        "torch_export": lambda: export_program(trained.module, trained.inputs, output, tolerance=share),
        "state_dict": lambda: _export_state_dict(trained, output, share),
    }
    try:
        exported = writers[asked.format]()
    except (ExportError, ValueError, ModuleNotFoundError, OSError) as error:
        if debugging():
            raise
        fail(2, str(error))
    print(exported)
    size = Path(asked.checkpoint).stat().st_size
    source = calibration.said if calibration else trained.source
    print(f"compared on {source}; the checkpoint, with the optimizer's state, has {size / 1e6:.3g} MB")
    if asked.format == "state_dict":
        print(_how_to_rebuild(exported))


def _export_onnx(
    trained: Trained, output: Path, asked: argparse.Namespace, calibration: Calibration | None
) -> Exported:
    return export_onnx(
        trained.module,
        trained.inputs,
        output,
        opset=asked.opset,
        tolerance=asked.tolerance,
        precision={"16": 16, "int8": "int8"}.get(asked.precision),
        calibration=calibration and calibration.batches,
        metadata={"model": trained.class_path, "checkpoint": Path(trained.path).name, "pruned": _pruned(trained)},
    )


def _pruned(trained: Trained) -> str:
    """Write, as JSON, the tensors that lost channels: name -> shape before and now."""
    now = {name: list(tensor.shape) for name, tensor in trained.module.state_dict().items()}
    return json.dumps(
        {n: [list(was), now[n]] for n, was in trained.dense.items() if now.get(n, list(was)) != list(was)}
    )


def _export_state_dict(trained: Trained, output: Path, tolerance: float | None) -> Exported:
    """The network of torchvision in the LightningModule, if forward only calls it; else all of it."""
    inner = _inner(trained)
    if inner is not None:
        return export_state_dict(inner, trained.inputs, output, tolerance=tolerance)
    if not trained.part and _is_plain(trained.settings):
        built: dict[str, Any] = {"builder": trained.class_path, "arguments": trained.settings}
        try:
            return export_state_dict(trained.module, trained.inputs, output, **built, tolerance=tolerance)
        except ExportError:
            pass  # its __init__ takes more than the checkpoint tells; the user has to build it
    return export_state_dict(trained.module, trained.inputs, output, tolerance=tolerance)


def _inner(trained: Trained) -> nn.Module | None:
    children = [child for child in trained.module.children() if next(child.parameters(), None) is not None]
    if len(children) != 1 or next(torchvision_builders(children[0]), None) is None:
        return None
    with evaluating(trained.module):
        whole, inner = trained.inputs.run(trained.module), trained.inputs.run(children[0])
    try:
        largest_difference(whole, inner, 0.0)
    except ExportError:
        return None
    return children[0]


def _is_plain(settings: dict[str, Any]) -> bool:
    try:
        json.dumps(settings)
    except TypeError:
        return False
    return True


def _how_to_rebuild(exported: Exported) -> str:
    _, record, loader = exported.files
    builder = json.loads(record.read_text(encoding="utf-8"))["builder"]
    if builder is None:
        return f"to rebuild it: from {loader.stem} import load; load(net), the network as it was before the pruning"
    return f"to rebuild it, with {builder}: from {loader.stem} import load; net = load()"
