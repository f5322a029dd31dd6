"""``lightning-taylor export``: a checkpoint as ONNX, as a ``torch.export`` program, or as a state dict to rebuild."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from lightning_taylor.cli.arguments import Parser, add_model_options, one_of, positive
from lightning_taylor.cli.checkpoint_model import Trained, read_trained
from lightning_taylor.cli.exit import debugging, fail
from lightning_taylor.cli.extras import require_extras
from lightning_taylor.cli.find_config import find_config
from lightning_taylor.cli.output import add_output, check_outputs
from lightning_taylor.export.onnx import export_onnx
from lightning_taylor.export.program import export_program
from lightning_taylor.export.state_dict import export_state_dict, files_of, torchvision_builders
from lightning_taylor.export.verified_write import Exported, ExportError, evaluating, largest_difference

__all__ = ["run"]

ENDINGS = {"onnx": ".onnx", "torch_export": ".pt2", "state_dict": ".pt"}
DESCRIPTION = "Write the network of a checkpoint, pruned or not, to a file; kept only if it computes the same."
EXAMPLES = """\
examples:
  lightning-taylor export last.ckpt --format onnx --model my_project.Net --input-shape 1 3 224 224
  lightning-taylor export last.ckpt --format state_dict --model lightning_logs/version_0/config.yaml

formats:
  onnx          one file for ONNX Runtime, which is run before the file is kept
  torch_export  a program for torch.export.load, without the model's code
  state_dict    the tensors, a JSON record, and a loader that rebuilds the network without lightning-taylor"""


def run(args: list[str]) -> None:
    """Export a checkpoint and say what was written."""
    asked = _parser().parse_args(args)
    output = Path(asked.output or Path(asked.checkpoint).with_suffix(ENDINGS[asked.format]))
    files = files_of(output) if asked.format == "state_dict" else [output]
    check_outputs(files, asked.checkpoint, overwrite=asked.overwrite)
    if asked.format == "onnx":
        require_extras("export")
    trained = read_trained(asked.checkpoint, asked, find_config(asked))
    share = asked.tolerance
    writers: dict[str, Callable[[], Exported]] = {
        "onnx": lambda: export_onnx(trained.module, trained.inputs, output, opset=asked.opset, tolerance=share),
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
    print(f"compared on {trained.source}; the checkpoint, with the optimizer's state, has {size / 1e6:.3g} MB")
    if asked.format == "state_dict":
        print(_how_to_rebuild(exported))


def _share(text: str) -> float:
    """Read a positive share of something."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _parser() -> Parser:
    parser = Parser("export", DESCRIPTION, EXAMPLES)
    parser.add_argument("checkpoint", metavar="CKPT", help="a checkpoint that a Trainer wrote")
    parser.add_argument("--format", required=True, type=one_of(*ENDINGS), help=" | ".join(ENDINGS), metavar="FORMAT")
    add_output(parser, "the file; by default beside the checkpoint")
    parser.add_argument("--opset", type=positive, metavar="N", help="ONNX operator set; by default torch's choice")
    parser.add_argument(
        "--tolerance",
        type=_share,
        metavar="T",
        help="largest difference that is kept, as a share of the largest output; by default 1e-4 in float32",
    )
    add_model_options(parser)
    return parser


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
