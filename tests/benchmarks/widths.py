"""Latency over width: what a convolution takes as its channels go one by one, and so what ``round_to`` is worth.

    python tests/benchmarks/widths.py [--device cuda] [--half] [--channels 256] [--side 28] [--batch 64]

Three convolutions in a row of which the middle widths shrink, as a group does. For every multiple the table has the
mean time over widths of that multiple, relative to what their FLOPs alone would say of the full width's time.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import mean, median

sys.path.insert(0, str(Path(__file__).parent))

import torch
from subjects import seconds, write
from torch import nn


def chain(outer: int, inner: int) -> nn.Sequential:
    convs = [nn.Conv2d(a, b, 3, padding=1) for a, b in ((outer, inner), (inner, inner), (inner, outer))]
    return nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--half", action="store_true", help="bfloat16, channels_last")
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--least", type=int, default=64)
    parser.add_argument("--side", type=int, default=28)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    parser.add_argument("--name", default="widths")
    args = parser.parse_args()
    x = torch.randn(args.batch, args.channels, args.side, args.side, device=args.device)
    if args.half:
        x = x.to(torch.bfloat16).to(memory_format=torch.channels_last)
    times: dict[int, float] = {}
    for width in range(args.least, args.channels + 1):
        net = chain(args.channels, width).to(args.device)
        if args.half:
            net = net.to(torch.bfloat16).to(memory_format=torch.channels_last)
        with torch.no_grad():
            seconds(lambda net=net: net(x), args.device, 2)
            times[width] = median(seconds(lambda net=net: net(x), args.device, 5) for _ in range(args.turns))

    def work(width: int) -> int:
        return width * (2 * args.channels + width)

    full = times[args.channels] / work(args.channels)
    rows = []
    for multiple in (1, 2, 4, 8, 16, 32, 64):
        share = [times[w] / work(w) / full for w in times if w % multiple == 0 and w < args.channels]
        odd = [times[w] / work(w) / full for w in times if w % multiple == 0 and w % (2 * multiple)]
        rows.append({
            "multiple of": multiple,
            "time per FLOP, over the full width's": f"{mean(share):.2f}" if share else "",
            "and no multiple of twice as much": f"{mean(odd):.2f}" if odd else "",
        })  # fmt: skip
    curve = ", ".join(f"{w}: {t * 1e3:.3f}" for w, t in times.items())
    kind = "bfloat16 channels_last" if args.half else "float32"
    title = f"Three 3x3 convolutions, {kind}, {args.batch} x {args.channels} x {args.side}^2"
    write(rows, title, args.out, args.name, args.device)
    (args.out / f"{args.name}.txt").write_text(f"{title}; milliseconds by inner width\n{curve}\n")


if __name__ == "__main__":
    main()
