"""Export round trips: difference, size and ONNX Runtime latency, before and after half of the channels are removed.

python tests/benchmarks/exports.py [NET ...]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from zoo import randomize, torchvision_model

from lightning_taylor import prune_channels, trace_channels
from lightning_taylor.export.onnx import export_onnx, onnx_session
from lightning_taylor.export.program import export_program
from lightning_taylor.export.state_dict import export_state_dict
from lightning_taylor.export.verified_write import Exported
from lightning_taylor.measure.latency import compare_latency
from lightning_taylor.modules.resize import with_shapes
from lightning_taylor.utilities.calls import Inputs

SHAPES = {
    "resnet18": (1, 3, 224, 224),
    "mobilenet_v2": (1, 3, 224, 224),
    "squeezenet1_1": (1, 3, 224, 224),
    "r3d_18": (1, 3, 8, 112, 112),
    "lraspp_mobilenet_v3_large": (1, 3, 256, 256),
}
PAIRS = 20


def round_trip(name: str, folder: Path) -> None:
    torch.manual_seed(0)
    pruned, x = torchvision_model(name)[0].eval(), torch.randn(*SHAPES.get(name, (1, 3, 224, 224)))
    randomize(pruned)
    graph = trace_channels(pruned, x)
    prune_channels(pruned, graph, graph.sample(0.5, torch.Generator().manual_seed(0)))
    dense = with_shapes(pruned, graph.dense)
    onnx = [export_onnx(net, x, folder / f"{kind}.onnx") for kind, net in (("dense", dense), ("pruned", pruned))]
    program = [export_program(net, x, folder / f"{kind}.pt2") for kind, net in (("dense", dense), ("pruned", pruned))]
    state = [export_state_dict(net, x, folder / f"{kind}.pt") for kind, net in (("dense", dense), ("pruned", pruned))]
    for kind, (before, after) in (("onnx", onnx), ("torch_export", program), ("state_dict", state)):
        print(f"{name:26} {kind:13} {sizes(before, after)}  max difference {after.max_difference:.1e}", flush=True)
    print(f"{name:26} {'onnx':13} {latency(onnx, x)}", flush=True)


def sizes(before: Exported, after: Exported) -> str:
    return f"{before.bytes / 1e6:7.2f} MB -> {after.bytes / 1e6:6.2f} MB"


def latency(onnx: list[Exported], x: Tensor) -> str:
    """One example, ONNX Runtime with as many threads as torch."""
    dense, pruned = (onnx_session(exported.path) for exported in onnx)
    inputs = Inputs.of(x)
    c = compare_latency(lambda: dense(inputs), lambda: pruned(inputs), warmup=3, repeats=PAIRS)
    return f"{c.dense.median * 1e3:7.1f} ms -> {c.pruned.median * 1e3:6.1f} ms  {c.verdict}"


if __name__ == "__main__":
    print(f"half of every group at random, one example, {torch.get_num_threads()} CPU thread(s)")
    for net in sys.argv[1:] or SHAPES:
        with tempfile.TemporaryDirectory() as scratch:
            round_trip(net, Path(scratch))
