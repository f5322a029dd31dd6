"""``lightning-taylor export``: a checkpoint as ONNX, as a ``torch.export`` program, or as a state dict to rebuild."""

from __future__ import annotations

import argparse
import math
from importlib import import_module
from pathlib import Path

from lightning_taylor.cli.arguments import Parser, add_model_options, one_of, positive
from lightning_taylor.cli.exit import fail
from lightning_taylor.cli.extras import require_extras
from lightning_taylor.cli.output import add_output
from lightning_taylor.cli.shipped_configs import is_config

__all__ = ["run"]

ENDINGS = {"onnx": ".onnx", "torch_export": ".pt2", "state_dict": ".pt"}
DESCRIPTION = "Write the network of a checkpoint, pruned or not, to a file; kept only if it computes the same."
EXAMPLES = """\
examples:
  lightning-taylor export last.ckpt --format onnx --model my_project.Net --input-shape 1 3 224 224
  lightning-taylor export last.ckpt --format onnx --model lightning_logs/version_0/config.yaml --precision int8
  lightning-taylor export last.ckpt --format state_dict --model lightning_logs/version_0/config.yaml

formats:
  onnx          one file for ONNX Runtime, which is run before the file is kept
  torch_export  a program for torch.export.load, without the model's code
  state_dict    the tensors, a JSON record, and a loader that rebuilds the network without lightning-taylor"""


def run(args: list[str]) -> None:
    """Export a checkpoint and say what was written."""
    asked = _parser().parse_args(args)
    configured = asked.config is not None or (asked.model is not None and is_config(asked.model))
    _check(asked, configured)
    # Before torch and Lightning are imported, which takes seconds.
    require_extras(*(["export"] if asked.format == "onnx" else []), *(["cli"] if configured else []))
    output = Path(asked.output or Path(asked.checkpoint).with_suffix(ENDINGS[asked.format]))
    import_module("lightning_taylor.cli.export_files").export(asked, output)


def _check(asked: argparse.Namespace, configured: bool) -> None:
    """End the command for options that do not go together."""
    if asked.precision != "32" and asked.format != "onnx":
        fail(2, f"--precision {asked.precision} goes with --format onnx, not {asked.format}")
    if asked.calibration is None:
        if asked.precision == "int8" and not configured:
            fail(
                2,
                "--precision int8 needs examples: give --calibration FILE, a tensor of some hundred by torch.save, or "
                "--model config.yaml, whose validation data are taken",
            )
    elif asked.precision != "int8":
        fail(2, f"--calibration {asked.calibration} sets the ranges of whole numbers: give --precision int8 with it")
    elif not Path(asked.calibration).is_file():
        fail(2, f"--calibration {asked.calibration}: no such file")


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
        "--precision",
        type=one_of("32", "16", "int8"),
        default="32",
        metavar="P",
        help="32 | 16 | int8, of the ONNX file; 32 by default. It is compared with the network in float32; see "
        "--tolerance",
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        help="for int8: some hundred examples as forward takes them, a tensor (or a tuple or dict, one for each input) "
        "by torch.save, or an .npy. Every other eight set the ranges, the rest are compared. By default 512 examples "
        "over all of the validation set of the config's data",
    )
    parser.add_argument(
        "--tolerance",
        type=_share,
        metavar="T",
        help="largest difference that is kept, as a share of the largest output; by default 1e-4 in float32. With "
        "--precision 16 and int8 its root mean square, as a share of the output's: 0.01 and 0.25",
    )
    add_model_options(parser)
    return parser
