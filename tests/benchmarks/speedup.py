"""What fewer FLOPs are worth: dense over pruned time of a forward pass, beside dense over pruned FLOPs.

    python tests/benchmarks/speedup.py [--device cuda] [--nets resnet50:224 ...] [--share 0.5] [--batches 1 16 256]

The same share of every group goes, at random: a shape, not an accuracy. "Realised" is the speed-up over the ratio of
the FLOPs. On a CPU eager, compiled and ONNX Runtime; on a GPU eager, compiled, and channels_last in bfloat16.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from accuracy import flops
from subjects import Clock, Setting, clock_of, in_turns, parser, ratios, write
from torch import Tensor, nn

from lightning_taylor import prune_channels
from lightning_taylor.export.onnx import export_onnx, onnx_session
from lightning_taylor.utilities.calls import Inputs

Run = Callable[[], Any]


def halved(setting: Setting, share: float, round_to: int) -> tuple[nn.Module, nn.Module]:
    """A net, and a copy without that share of every group."""
    dense = setting.model().eval()
    pruned = copy.deepcopy(dense)
    graph = setting.traced(pruned)
    keep = {n: max(round_to, round((1 - share) * g.size / round_to) * round_to) for n, g in graph.groups.items()}
    remove = {n: torch.arange(min(keep[n], g.size), g.size) for n, g in graph.groups.items() if keep[n] < g.size}
    prune_channels(pruned, graph, remove)
    return dense, pruned


def ways(net: nn.Module, x: Tensor, *, compiled: bool) -> dict[str, Run]:
    """Forward passes of a net, by how it is run."""

    def plain(run: Any, given: Tensor) -> Run:
        def forward() -> Any:
            with torch.no_grad():
                return run(given)

        return forward

    found = {"eager": plain(net, x)} | ({"compiled": plain(torch.compile(net, dynamic=False), x)} if compiled else {})
    if x.is_cuda:
        half = copy.deepcopy(net).to(torch.bfloat16)
        if x.ndim == 4:
            half, x = half.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
        found["bf16 channels_last"] = plain(half, x.to(torch.bfloat16))
        if compiled:
            found["bf16 channels_last compiled"] = plain(torch.compile(half, dynamic=False), x.to(torch.bfloat16))
    else:
        with tempfile.TemporaryDirectory() as folder:
            session, inputs = onnx_session(export_onnx(net, x[:2], Path(folder) / "net.onnx").path), Inputs.of(x)
        found["ONNX Runtime"] = lambda: session(inputs)
    return found


def compared(
    dense: dict[str, Run], pruned: dict[str, Run], ratio: float, device: str, turns: int, clock: Clock
) -> list[dict[str, Any]]:
    """A row for each way of running them; ``ratio`` is that of their FLOPs."""
    rows = []
    for way in dense:
        pair = {"dense": dense[way], "pruned": pruned[way]}
        for run in pair.values():
            for _ in range(3 if device == "cuda" else 1):
                run()
        found = in_turns(pair, device, turns, 1 if device == "cpu" else 5, clock)
        speedup, low, high = ratios(found, "dense", "pruned")
        times = {kind: f"{sorted(found[kind])[turns // 2] * 1e3:.2f} ms" for kind in pair}
        rows.append(
            {"way": way}
            | times
            | {"faster": f"{speedup:.2f} ({low:.2f} to {high:.2f})", "FLOPs": f"{ratio:.2f} times fewer"}
            | {"realised": f"{speedup / ratio:.2f}"}
        )
    return rows


def main() -> None:
    asked = parser(__doc__, "speedup", default=["resnet50:224", "vgg16:224", "mobilenet_v2:224"])
    asked.add_argument("--share", type=float, default=0.5, help="of every group that goes")
    asked.add_argument("--round-to", type=int, default=8)
    asked.add_argument("--batches", type=int, nargs="+", default=[1, 16, 256])
    asked.add_argument("--turns", type=int, default=10)
    asked.add_argument("--uncompiled", action="store_true", help="leave compiled code out")
    asked.add_argument("--busy", action="store_true", help="processor time in one thread")
    args = asked.parse_args()
    rows: list[dict[str, Any]] = []
    for text in args.nets:
        name, side = text.split(":")
        setting = Setting(name, 1, int(side), args.device)
        nets = halved(setting, args.share, args.round_to)
        example = setting.images(1, setting.side)
        ratio = flops(nets[0], example) / flops(nets[1], example)
        for batch in args.batches:
            torch.compiler.reset()
            x = setting.images(batch, setting.side).to(args.device)
            dense, pruned = (ways(net.to(args.device), x, compiled=not args.uncompiled) for net in nets)
            found = compared(dense, pruned, ratio, args.device, args.turns, clock_of(args.busy))
            rows += [{"net": setting.net, "batch": batch} | row for row in found]
        write(rows, f"{args.share:.0%} of every group removed", args.out, args.name, args.device)


if __name__ == "__main__":
    main()
