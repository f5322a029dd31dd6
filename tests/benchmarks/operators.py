"""Where the time of a training step goes: torch's operators by their own time, without and with scores.

python tests/benchmarks/operators.py [--device cuda] [--net resnet18:16:128] [--top 8]
"""

from __future__ import annotations

import copy
from typing import Any

from subjects import Setting, Training, parser, write
from torch.profiler import ProfilerActivity, profile

from lightning_taylor import Taylor, TaylorBatch


def own_times(training: Training, steps: int) -> dict[str, float]:
    """Operator -> milliseconds of a step that are its own."""
    training.warm_up()
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (training.setting.device == "cuda")
    with profile(activities=kinds) as traced:
        for _ in range(steps):
            training.step()
    field = "self_device_time_total" if training.setting.device == "cuda" else "self_cpu_time_total"
    return {e.key: getattr(e, field) / steps / 1e3 for e in traced.key_averages()}


def measured(setting: Setting, steps: int, top: int) -> list[dict[str, Any]]:
    """A row per operator: the costliest of a plain step, and those that grow most with each criterion."""
    net = setting.model()
    graph = setting.traced(net)
    found: dict[str, dict[str, float]] = {}
    for criterion in (None, Taylor(), TaylorBatch()):
        training = Training(setting, copy.deepcopy(net))
        if criterion:
            training.scorer = criterion.scorer(training.net, graph)
        found[type(criterion).__name__ if criterion else "no scores"] = own_times(training, steps)
    plain = found["no scores"]
    most = sorted(plain, key=lambda key: -plain[key])[: top // 2]
    for times in (found["Taylor"], found["TaylorBatch"]):
        grown = {key: value - plain.get(key, 0.0) for key, value in times.items() if key not in most}
        most += sorted(grown, key=lambda key: -grown[key])[: top // 2]
    rows: list[dict[str, Any]] = [
        {"net": str(setting), "operator": key}
        | {kind: f"{times.get(key, 0.0):.2f} ms" for kind, times in found.items()}
        for key in most
    ]
    total = {kind: f"{sum(times.values()):.1f} ms" for kind, times in found.items()}
    return [*rows, {"net": str(setting), "operator": "all"} | total]


def main() -> None:
    asked = parser(__doc__, "operators", default=["resnet18:16:128"])
    asked.add_argument("--steps", type=int, default=5)
    asked.add_argument("--top", type=int, default=8, help="operators that grow most, of each criterion")
    args = asked.parse_args()
    rows: list[dict[str, Any]] = []
    for text in args.nets:
        rows += measured(Setting.of(text, args.device), args.steps, args.top)
        write(rows, "Operators' own time in a step", args.out, args.name, args.device)


if __name__ == "__main__":
    main()
