"""Wrong types and ranges of every argument that a user writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from campaigns.cases import Case
from lightning_taylor import Gradual, Iterative, OneShot, Random, Target, Taylor, TaylorBatch, TaylorPruning
from lightning_taylor.plan.guard import Guard

NAN, INF = float("nan"), float("inf")

PRUNING: dict[str, tuple[str, list[Any]]] = {
    "target": ("target", [0, 0.0, -0.5, 1.01, 50, NAN, INF, True, "0.5", "half", None, [0.5], {}, torch.rand(2)]),
    "schedule": ("schedule takes Gradual", ["cubic", 5, True, Gradual, OneShot, [OneShot(3)], {"step": 3}]),
    "criterion": ("criterion takes a criterion", ["taylor", Taylor, Random, 5, True, lambda x: x]),
    "normalization": ("normalization must be one of 'l2'", ["L2", "", 2, True, NAN, ["l2"]]),
    "cost_penalty": ("cost_penalty must be a number", [-1, NAN, INF, "1e-3", None, True, [1]]),
    "ignore": ("ignore takes", ["fc", None, 5, True, [""], [5], [None], {"fc"}, NAN]),
    "cost_power": ("cost_power must be a number", [-0.5, NAN, INF, "half", True, [1]]),
    "flops_penalty": ("flops_penalty must be a number", [-1, NAN, INF, "1e-3", True, [1]]),
    "flops_power": ("flops_power must be a number", [-0.5, NAN, INF, "half", True, [1]]),
    "min_channels": ("min_channels must be a whole", [0, -1, 1.5, NAN, None, True, "2", [1]]),
    "round_to": ("round_to must be a whole", [0, -8, 8.0, NAN, True, "8", [8]]),
    "example_inputs": ("example_inputs takes", [(1, 3, 0, 32), [1, -3], "image", 5, True, NAN, (), b"x"]),
    "measure_latency": ("measure_latency must be True or False", ["no", None, 0, NAN]),
    "guard": ("guard takes a Guard", ["val_acc", 0.02, True, Guard, {"monitor": "val_acc"}, NAN]),
    "allow_untested_strategy": ("allow_untested_strategy must be True or False", ["ddp", None, 1, NAN]),
    "allow_inexact_norms": ("allow_inexact_norms must be True or False", ["yes", None, 1, NAN]),
    "conv_groups": (
        "conv_groups must be one of 'auto', 'whole', 'spread'",
        ["Whole", "", None, 2, True, NAN, ["auto"]],
    ),
    "attention_heads": (
        "attention_heads must be one of 'whole', 'spread'",
        ["auto", "", None, 2, True, NAN, ["whole"]],
    ),
    "oracle_sample": ("oracle_sample must be a whole number of at least 0", [-1, 0.5, NAN, None, True, "64", [64]]),
}

OTHERS: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (Target, {}, "at least one of flops="),
    *((Target, {"params": value}, "params=.* not a") for value in (0, 2, NAN, "x", True, [1])),
    (Target, {"flops": 0.5, "channels": -1}, "channels=-1"),
    (Target, {"latency": "fast"}, "latency='fast' is not a number"),
    (Target, {"memory": INF}, "memory=inf is not a fraction"),
    (Target, {"flop": 0.5}, "flop"),
    *((Iterative, {"every_n_steps": v, "channels_per_event": 1}, "every_n_steps") for v in (0, 1.5, None, "2", True)),
    *((Iterative, {"every_n_steps": 1, "channels_per_event": v}, "channels_per_event") for v in (0, -1, 0.5, None)),
    (Iterative, {"every_n_steps": 1, "channels_per_event": 1, "start_step": -1}, "start_step"),
    (Iterative, {}, "every_n_steps"),
    (Gradual, {"every_n_steps": 0, "start_step": 0, "end_step": 5}, "every_n_steps"),
    (Gradual, {"every_n_steps": 1, "start_step": 5, "end_step": 5}, "end_step=5 must be larger than start_step=5"),
    (Gradual, {"every_n_steps": 1, "start_step": 5, "end_step": INF}, "end_step"),
    (Gradual, {"every_n_steps": 1, "start_step": "1", "end_step": 5}, "start_step"),
    (OneShot, {"step": None}, "OneShot needs step, or at"),
    *(
        (Gradual, {"every_n_steps": 1, "start_step": 0, "end_step": 5, "curve": v}, "curve must")
        for v in ("exp", None, [1])
    ),
    *((OneShot, {"step": v}, "step must be a whole number of at least 1") for v in (0, -3, 2.0, "5", True, NAN)),
    *((Guard, {"monitor": "a", "max_drop": v}, "max_drop must be a number") for v in (-1, NAN, INF, None, "1", True)),
    *((Guard, {"monitor": v, "max_drop": 1}, "monitor must be") for v in ("", None, 5, ["a"])),
    *((Guard, {"monitor": "a", "max_drop": 1, "action": v}, "action must be one of") for v in ("wait", None, ["stop"])),
    *((Guard, {"monitor": "a", "max_drop": 1, "mode": v}, "mode must be one of") for v in ("lowest", None, 1)),
    *((Taylor, {"positions": v}, "positions must be 'sum' or 'mean'") for v in ("max", None, 1, True, ["sum"])),
    *((Random, {"seed": v}, "seed must be a whole number") for v in ("x", None, 1.5, NAN, True)),
    (TaylorBatch, {"momentum": 1.5}, "momentum"),
    (TaylorPruning, {"targets": 0.5}, "targets"),
]


def _cases() -> Iterator[Case]:
    for name, (says, values) in PRUNING.items():
        for value in values:
            yield Case(f"TaylorPruning({name}={value!r})", lambda _, n=name, v=value: TaylorPruning(**{n: v}), says)
    for make, arguments, says in OTHERS:
        yield Case(f"{make.__name__}({arguments})", lambda _, m=make, a=arguments: m(**a), says)  # type: ignore[attr-defined]
    several = {"target": 5, "min_channels": 0, "round_to": "x", "normalization": "L2"}
    for name in several:
        yield Case(f"several at once name {name}", lambda _: TaylorPruning(**several), f"4 arguments.*{name}")  # type: ignore[arg-type]
    yield Case("a float in its class", lambda _: TaylorPruning(Target(flops=1), Iterative(1, 1), Taylor("mean")), None)


CASES: list[Case] = list(_cases())
