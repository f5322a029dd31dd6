"""Whether a target of latency or memory is met on this machine: asked, reported by the fit, and measured anew.

    python tests/benchmarks/targets.py [--device cuda] [--nets resnet18:16:64 mobilenet_v2:16:64] [--steps 40]

After each fit the dense and the pruned net run in turns on a batch as it was trained with. Latency is the median ratio
of a turn. Memory is what torch's allocator says: the peak of a pass, with the weights and the input, without and with
what operators take for themselves.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from bisect import bisect
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from subjects import Clock, Setting, clock_of, in_turns, parser, ratios, shown, write
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from whole_fit import Fit

from lightning_taylor import Gradual, Target, TaylorPruning

Change = tuple[float, int, int]
"""When, which address, how many bytes: below 0 where they are given back."""


def peak(net: nn.Module, x: Tensor, folder: str) -> tuple[int, int]:
    """Bytes: weights, buffers and input, and the most that the allocator had handed out in a pass.

    First without what an operator frees again before it returns, which the target does not count, then with it (on a
    GPU both with it).
    """
    held = sum(t.numel() * t.element_size() for t in (*net.parameters(), *net.buffers(), x))
    with torch.no_grad():
        net(x)
        if x.is_cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            net(x)
            torch.cuda.synchronize()
            return (held + torch.cuda.max_memory_allocated() - before,) * 2
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as traced:
            net(x)
    file = Path(folder) / "trace.json"
    traced.export_chrome_trace(str(file))
    events = json.loads(file.read_text())["traceEvents"]
    operators = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e.get("cat") == "cpu_op")
    changes = sorted((e["ts"], e["args"]["Addr"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    return held + highest(lasting(changes, operators)), held + highest(changes)


def lasting(changes: list[Change], operators: list[tuple[float, float]]) -> list[Change]:
    """Without what is taken and given back within one call of the outermost operators."""
    outermost: list[tuple[float, float]] = []
    for began, ended in operators:
        if not outermost or began >= outermost[-1][1]:
            outermost.append((began, ended))
    starts = [began for began, _ in outermost]
    taken: dict[int, tuple[int, int]] = {}
    gone: set[int] = set()
    for place, (when, address, size) in enumerate(changes):
        operator = bisect(starts, when) - 1
        if size > 0:
            taken[address] = place, operator
        elif address in taken:
            began, its = taken.pop(address)
            if its == operator and when <= outermost[operator][1]:
                gone |= {began, place}
    return [change for place, change in enumerate(changes) if place not in gone]


def highest(changes: list[Change]) -> int:
    return max(accumulate(size for *_, size in changes))


def fitted(
    setting: Setting, resource: str, asked: float, steps: int, clock: Clock, folder: str
) -> tuple[dict[str, nn.Module], TaylorPruning]:
    """A dense net, and one that a short fit pruned to the target; with the callback that did."""
    callback = TaylorPruning(
        Target(**{resource: asked}),
        Gradual(every_n_steps=max(1, steps // 20), start_step=3, end_step=steps // 2),
        measure_latency=False,
    )
    fit = Fit(setting, steps, [callback], folder, clock)
    return {"dense": setting.model().eval().to(setting.device), "pruned": fit.net.eval()}, callback


def measured(
    setting: Setting, resource: str, asked: float, steps: int, turns: int, clock: Clock, folder: str
) -> dict[str, Any]:
    nets, callback = fitted(setting, resource, asked, steps, clock, folder)
    x = setting.images(setting.batch, setting.side).to(setting.device)

    def forward(net: nn.Module) -> Any:
        with torch.inference_mode():
            return net(x)

    whole = dense_whole = 1
    if resource == "memory":
        (pruned, whole), (dense, dense_whole) = (peak(nets[kind], x, folder) for kind in ("pruned", "dense"))
        anew = (pruned / dense,) * 3
    else:
        runs = {kind: lambda net=net: forward(net) for kind, net in nets.items()}
        in_turns(runs, setting.device, 3)
        anew = ratios(in_turns(runs, setting.device, turns, clock=clock), "pruned", "dense")
    return {
        "net": str(setting),
        "asked": f"{resource} {asked:g}",
        "the fit says": f"{callback.remaining[resource]:.3f}",
        "measured anew": shown(anew) if resource == "latency" else f"{anew[0]:.3f}",
        "with operators' own": f"{whole / dense_whole:.3f}" if resource == "memory" else "",
        "off": f"{anew[0] / asked - 1:+.1%}",
        "FLOPs left": f"{callback.remaining['flops']:.1%}",
    }


def main() -> None:
    asked = parser(__doc__, "targets", default=["resnet18:16:64", "mobilenet_v2:16:64"])
    asked.add_argument("--latency", type=float, nargs="*", default=[0.7])
    asked.add_argument("--memory", type=float, nargs="*", default=[0.6])
    asked.add_argument("--steps", type=int, default=40)
    asked.add_argument("--turns", type=int, default=50)
    asked.add_argument("--busy", action="store_true", help="measure anew in processor time, all in one thread")
    args = asked.parse_args()
    clock = clock_of(args.busy)
    warnings.filterwarnings("ignore")
    rows = []
    for text in args.nets:
        setting = Setting.of(text, args.device)
        for resource, asked in [*(("latency", a) for a in args.latency), *(("memory", a) for a in args.memory)]:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(measured(setting, resource, asked, args.steps, args.turns, clock, folder))
            write(rows, "Targets that are measured", args.out, args.name, args.device)


if __name__ == "__main__":
    main()
