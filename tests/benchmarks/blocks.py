"""Blocks as units, a study: what it saves that a residual branch goes as a whole, beside one that keeps a channel.

    python tests/benchmarks/blocks.py [--device cuda] [--nets resnet50:224 ...] [--batches 1 16] [--busy]

Of every second branch that does not change the shape, the removable channels go but for one each ("narrow"), or the
branch itself ("skipped": what it computes is replaced by zeros, in the class that the block has). Both are compared
with the dense net that ignores the same; times as in ``speedup.py``.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from accuracy import flops
from speedup import ways
from subjects import Setting, clock_of, in_turns, parser, ratios, write
from torch import Tensor, nn
from torchvision.models.convnext import CNBlock
from torchvision.models.resnet import BasicBlock, Bottleneck

from lightning_taylor import ChannelGraph, prune_channels


class Zeros(nn.Module):
    """In the place of a branch."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def branches(net: nn.Module) -> list[str]:
    """Every second block that adds to what it is given, without a layer on its shortcut."""
    blocks = [
        name for name, module in net.named_modules()
        if isinstance(module, CNBlock) or (isinstance(module, BasicBlock | Bottleneck) and module.downsample is None)
    ]  # fmt: skip
    return blocks[::2]


def layers(block: nn.Module) -> list[str]:
    """The names of what a ResNet's block computes before it adds."""
    return [name for name, _ in block.named_children() if name.startswith(("conv", "bn"))]


def narrow(net: nn.Module, graph: ChannelGraph, blocks: list[str]) -> nn.Module:
    """One channel of every group that lies within one of the blocks is left."""
    net = copy.deepcopy(net)
    inside = {
        name: group for name, group in graph.groups.items()
        if any(all(s.tensor.startswith(f"{block}.") for s in group.slices) for block in blocks)
    }  # fmt: skip
    prune_channels(net, graph, {name: torch.arange(1, group.size) for name, group in inside.items()})
    return net


def skipped(net: nn.Module, blocks: list[str]) -> nn.Module:
    net = copy.deepcopy(net)
    for name in blocks:
        block: Any = net.get_submodule(name)
        if isinstance(block, CNBlock):
            block.block = Zeros()
            continue
        first, *others = layers(block)
        setattr(block, first, Zeros())
        for layer in others:
            setattr(block, layer, nn.Identity())
    return net


def silent(net: nn.Module, blocks: list[str]) -> nn.Module:
    """The dense net whose branches add nothing."""
    net = copy.deepcopy(net)
    for name in blocks:
        block: Any = net.get_submodule(name)
        last = (
            [block.layer_scale] if isinstance(block, CNBlock) else list(getattr(block, layers(block)[-1]).parameters())
        )
        for parameter in last:
            nn.init.zeros_(parameter)
    return net


def difference(one: nn.Module, other: nn.Module, x: Tensor) -> float:
    """Of the outputs, relative to the largest, in double precision."""
    with torch.no_grad():
        a, b = (copy.deepcopy(net).double()(x.double()) for net in (one, other))
    return float((a - b).abs().max() / b.abs().max())


def main() -> None:
    asked = parser(__doc__, "blocks", default=["resnet18:224", "resnet50:224", "convnext_tiny:224"])
    asked.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    asked.add_argument("--turns", type=int, default=10)
    asked.add_argument("--uncompiled", action="store_true", help="leave compiled code out")
    asked.add_argument("--busy", action="store_true", help="processor time in one thread")
    args = asked.parse_args()
    rows: list[dict[str, Any]] = []
    for text in args.nets:
        name, side = text.split(":")
        setting = Setting(name, 1, int(side), args.device)
        dense = setting.model().eval()
        blocks, example = branches(dense), setting.images(1, setting.side)
        nets = {
            "dense": dense,
            "narrow": narrow(dense, setting.traced(dense), blocks),
            "skipped": skipped(dense, blocks),
        }
        off = difference(nets["skipped"], silent(dense, blocks), example)
        left = {kind: flops(net, example) / flops(dense, example) for kind, net in nets.items()}
        for batch in args.batches:
            torch.compiler.reset()
            x = setting.images(batch, setting.side).to(args.device)
            runs = {kind: ways(net.to(args.device), x, compiled=not args.uncompiled) for kind, net in nets.items()}
            for way in runs["dense"]:
                each = {kind: found[way] for kind, found in runs.items()}
                for run in each.values():
                    run()
                seconds = in_turns(each, args.device, args.turns, 5 if batch == 1 else 1, clock_of(args.busy))
                row = {"net": name, "branches": len(blocks), "batch": batch, "way": way}
                for kind in ("narrow", "skipped"):
                    ratio, low, high = ratios(seconds, "dense", kind)
                    row |= {
                        f"{kind}, FLOPs left": f"{left[kind]:.1%}",
                        f"{kind}, faster": f"{ratio:.2f} ({low:.2f} to {high:.2f})",
                    }
                rows.append(row | {"skipped, off by": f"{off:.0e}"})
        write(rows, "Every second residual branch", args.out, args.name, args.device)


if __name__ == "__main__":
    main()
