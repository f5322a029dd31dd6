"""``lightning-taylor benchmark``: the two networks are the right ones, and nothing is called faster that is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_taylor.cli import benchmark
from lightning_taylor.measure.latency import Latency, LatencyComparison

pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")

Run = Callable[..., tuple[int, str, str]]
DIGITS = ("--input-shape", 1, 1, 8, 8)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What the two callables gave, with times that are made up: the second one takes half as long from 16 on."""
    outputs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def compare(dense: Callable[[], Any], pruned: Callable[[], Any], *, warmup: int, repeats: int) -> LatencyComparison:
        outputs.append((dense(), pruned()))
        gain = 2.0 if len(outputs[-1][0]) >= 16 else 1.0
        times = [Latency(0.004 / g, 0.0039 / g, 0.0041 / g, repeats) for g in (1, gain)]
        return LatencyComparison(*times, gain, gain - 0.1, gain + 0.1)

    monkeypatch.setattr(benchmark, "compare_latency", compare)
    return outputs


@pytest.mark.slow
def test_a_checkpoint_is_timed_at_every_batch_size(run: Run, pruned_fit: Path, timed: list[Any]) -> None:
    code, out, err = run("benchmark", pruned_fit, *DIGITS, "--batch-size", 1, 16)
    assert (code, err) == (0, "")
    assert [(len(dense), len(pruned)) for dense, pruned in timed] == [(1, 1), (16, 16)]
    assert "batch of 1: no speed-up measured: any difference is lost" in out
    assert "batch of 16: 2.00 times faster" in out
    rows = [line.split() for line in out.splitlines() if line.strip()[:1].isdigit()]
    assert rows[1] == ["16", "4", "(3.9-4.1)", "2", "(1.95-2.05)", "4000", "8000"]
    assert "inputs: random numbers" in out
    assert max(map(len, out.splitlines())) <= 80


def test_the_dense_network_has_the_widths_from_before_the_pruning(run: Run, pruned_fit: Path, timed: list[Any]) -> None:
    sizes = []
    networks = benchmark._networks

    def spy(asked: Any) -> benchmark.Networks:
        found = networks(asked)
        sizes.extend(sum(p.numel() for p in net.parameters()) for net in (found.dense, found.pruned))
        assert not found.notes[1:]
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "_networks", spy)
        assert run("benchmark", pruned_fit, *DIGITS)[0] == 0
    assert sizes[0] == 542_746
    assert sizes[1] < 0.6 * sizes[0]


def test_the_figures_come_as_json_in_seconds(run: Run, pruned_fit: Path, timed: list[Any]) -> None:
    _, out, _ = run("benchmark", pruned_fit, *DIGITS, "--batch-size", 4, "--repeats", 7, "--json")
    found = json.loads(out)
    (result,) = found["results"]
    assert (result["batch_size"], result["dense"]["median"], result["dense"]["repeats"]) == (4, 0.004, 7)
    assert (result["dense_per_second"], result["conclusive"]) == (1000, False)
    assert found["inputs"] == [[1, 1, 8, 8]]
    assert "thread" in found["machine"]


def test_two_equal_networks_are_really_timed_and_none_is_called_faster(run: Run, tmp_path: Path) -> None:
    from cli.test_export import saved
    from cli.trained_nets import Fire

    path = saved(Fire(), tmp_path / "net.ckpt")
    args = ("benchmark", path, "--model=cli.trained_nets.Fire", "--batch-size", 1, "--repeats", 9, "--json")
    code, out, _ = run(*args)
    found = json.loads(out)
    assert code == 0
    assert "not pruned: both columns are the same network" in found["notes"][1]
    assert found["results"][0]["dense"]["median"] > 0
    assert found["results"][0]["low"] <= found["results"][0]["speedup"] <= found["results"][0]["high"]


def test_a_model_of_torchvision_is_pruned_at_random_and_said_to_be(run: Run, timed: list[Any]) -> None:
    code, out, _ = run("benchmark", "squeezenet1_1", "--fraction=0.5", "--input-shape", 1, 3, 64, 64)
    assert code == 0
    assert timed[0][0].shape == timed[0][1].shape == (1, 1000)
    assert "50% of every group's channels removed at random, random weights: for its time only" in " ".join(out.split())


MISTAKES = {
    "no file": (["no.ckpt"], "no file 'no.ckpt'"),
    "name": (["resnet81"], "no model of torchvision is called 'resnet81'; did you mean resnet18"),
    "fraction of a file": (["CKPT", "--fraction=0.5"], "--fraction is for a torchvision name"),
    "no fraction": (["resnet18"], "say what to remove at random, as in --fraction 0.5"),
    "fraction": (["resnet18", "--fraction=1.5"], "--fraction: expected a share between 0 and 1, got '1.5'"),
    "batch": (["CKPT", "--batch-size", "0"], "--batch-size: expected a whole number from 1 on, got '0'"),
    "repeats": (["CKPT", "--repeats=2"], "--repeats: expected at least 5 pairs, got 2"),
    "device": (["CKPT", "--device=gpu"], "--device gpu: "),
}


@pytest.mark.parametrize(("args", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_answered_in_a_line_or_two(run: Run, pruned_fit: Path, args: list[str], message: str) -> None:
    code, _, err = run("benchmark", *(str(pruned_fit) if arg == "CKPT" else arg for arg in args))
    assert code == 2
    assert err.startswith("lightning-taylor: error: ")
    assert message in err
    assert len(err.splitlines()) <= 2
