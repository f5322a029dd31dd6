"""What the benchmarks train, time and write: nets of torchvision, a bare training step, a table with its machine."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from lightning_taylor import trace_channels
from lightning_taylor.criteria.base import Scorer
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.measure.environment import machine

Clock = Callable[[], float]
CLIPS = {"r3d_18", "r2plus1d_18", "s3d"}


@dataclass(frozen=True)
class Setting:
    """How a net is trained."""

    net: str
    batch: int
    side: int
    device: str = "cpu"
    half: bool = False
    last: bool = False
    compiled: bool = False

    @classmethod
    def of(cls, text: str, *others: Any) -> Setting:
        """From "resnet50:16:64": name, batch, side."""
        name, batch, side = text.split(":")
        return cls(name, int(batch), int(side), *others)

    def __str__(self) -> str:
        ways = [
            w for w, on in (("bf16-mixed", self.half), ("channels_last", self.last), ("compiled", self.compiled)) if on
        ]
        return " ".join([self.net, f"{self.batch}x{self.side}", *ways])

    @property
    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device, torch.bfloat16) if self.half else nullcontext()

    def images(self, batch: int, side: int, frames: int = 16) -> Tensor:
        return torch.randn(batch, 3, *([frames] if self.net in CLIPS else []), side, side)

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        options = {"init_weights": False} if self.net in ("googlenet", "inception_v3") else {}
        return torchvision.models.get_model(self.net, weights=None, **options).train()

    def traced(self, net: nn.Module, side: int = 64) -> ChannelGraph:
        """Channels do not depend on the size of the images; FLOPs do."""
        return trace_channels(net, self.images(1, side, 4))


class Training:
    """A net with its optimizer and one batch, which stays on the device."""

    def __init__(self, setting: Setting, net: nn.Module) -> None:
        self.setting, self.net = setting, net.to(setting.device)
        x = setting.images(setting.batch, setting.side).to(setting.device)
        if setting.last and x.ndim == 4:
            x, self.net = x.to(memory_format=torch.channels_last), self.net.to(memory_format=torch.channels_last)
        self.x, self.y = x, torch.arange(setting.batch, device=setting.device) % 10
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=1e-4, momentum=0.9, foreach=True)
        self.scorer: Scorer | None = None
        self.forward: Callable[[Tensor], Any] = torch.compile(self.net) if setting.compiled else self.net

    def step(self) -> None:
        self.optimizer.zero_grad()
        with self.setting.autocast:
            loss = F.cross_entropy(self.forward(self.x), self.y)
        if self.scorer is None:
            loss.backward()
        else:
            self.scorer.before_backward()
            loss.backward()
            self.scorer.after_backward()
            self.scorer.end_batch(examples=len(self.x))
            self.scorer.before_step()
        self.optimizer.step()

    def warm_up(self, steps: int = 4) -> None:
        """The first step of a scorer runs uncompiled, as in a fit."""
        if self.setting.compiled and self.scorer is not None:
            with torch.compiler.set_stance("force_eager"):
                self.step()
        for _ in range(steps):
            self.step()


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(run: Callable[[], Any], device: str, times: int = 1, clock: Clock = time.perf_counter) -> float:
    """Wall time of one of several runs in a row; with ``time.process_time`` what a busy machine does not lengthen."""
    synchronize(device)
    began = clock()
    for _ in range(times):
        run()
    synchronize(device)
    return (clock() - began) / times


def in_turns(
    runs: Mapping[str, Callable[[], Any]],
    device: str,
    turns: int,
    times: int = 1,
    clock: Clock = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each run, turn by turn: drift of the machine meets all of them alike."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(turns):
        for name, run in runs.items():
            found[name].append(seconds(run, device, times, clock))
    return found


def parser(description: str | None, name: str, **net: Any) -> argparse.ArgumentParser:
    """What every benchmark asks for; ``net`` says of ``--nets`` what the default is, and whatever else it needs."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--device", default="cpu")
    found.add_argument("--nets", nargs="+", **net)
    found.add_argument("--out", type=Path, default=Path("benchmarks"))
    found.add_argument("--name", default=name)
    return found


def clock_of(busy: bool) -> Clock:
    """The wall's clock; or, on a machine that others use too, the processor's, in one thread."""
    if busy:
        torch.set_num_threads(1)
    return time.process_time if busy else time.perf_counter


def ratios(found: Mapping[str, Sequence[float]], name: str, base: str) -> tuple[float, float, float]:
    """Median and quartiles of a run's seconds over another's of the same turn."""
    each = [a / b for a, b in zip(found[name], found[base], strict=True)]
    low, _, high = quantiles(each, n=4) if len(each) > 1 else (each[0],) * 3
    return median(each), low, high


def shown(ratio: tuple[float, float, float]) -> str:
    return f"{ratio[0]:.3f} ({ratio[1]:.3f} to {ratio[2]:.3f})"


def write(rows: list[dict[str, Any]], title: str, folder: Path, name: str, device: str) -> None:
    """The table as Markdown, on the screen and in a file, and its rows as JSON; with the machine and the versions."""
    folder.mkdir(parents=True, exist_ok=True)
    of = machine(torch.device(device))
    threads = f", {torch.get_num_threads()} thread(s)" if device == "cpu" else ""
    about = f"{of['device']} in {of['machine']}{threads}; " + ", ".join(f"{k} {v}" for k, v in of["versions"].items())
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [f"# {title}", "", about, "", "| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(str(row.get(column, "")) for column in columns) + " |" for row in rows]
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n")
    (folder / f"{name}.json").write_text(json.dumps({"title": title, **of, "rows": rows}, indent=1))
    print("\n".join(lines), flush=True)
