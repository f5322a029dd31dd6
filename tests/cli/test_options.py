"""Every option of the callback, written in Python, in YAML and on the command line, gives the same object."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("jsonargparse", reason="needs the extra cli")
pytest.importorskip("sklearn", reason="needs the extra recipes")

import yaml
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel

import lightning_taylor
from lightning_taylor import (
    Criterion,
    Gradual,
    Guard,
    Iterative,
    OneShot,
    Random,
    Target,
    Taylor,
    TaylorBatch,
    TaylorPruning,
    WeightMagnitude,
    cli,
)
from lightning_taylor.fit.options import FORMER_NAMES
from lightning_taylor.plan import ScoreBatches

# Lightning 2.6 calls what the newest jsonargparse is about to rename.
pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")


@dataclass(frozen=True)
class Case:
    """One value of one option; ``line`` is what follows ``--trainer.callbacks.`` on the command line."""

    option: str
    python: Any
    yaml: str
    line: tuple[str, ...]


GRADUAL = "{class_path: lightning_taylor.Gradual, init_args: {every_n_steps: 5, start_step: 10, end_step: 30}}"
LINEAR = "{class_path: Gradual, init_args: {every_n_steps: 5, start_step: 10, end_step: 30, curve: linear}}"
CASES = [
    Case("target", 0.3, "0.3", ("target=0.3",)),
    Case("target", Target(flops=0.5, params=0.6), "{flops: 0.5, params: 0.6}",
         ("target.flops=0.5", "target.params=0.6")),
    Case("target", Target(channels=0.7), "{channels: 0.7}", ('target={"channels": 0.7}',)),
    Case("target", Target(latency=0.8, memory=0.9), "{latency: 0.8, memory: 0.9}",
         ("target.latency=0.8", "target.memory=0.9")),
    Case("schedule", None, "null", ("schedule=null",)),
    Case("schedule", Gradual(5, 10, 30), GRADUAL,
         ("schedule=Gradual", "schedule.every_n_steps=5", "schedule.start_step=10", "schedule.end_step=30")),
    Case("schedule", Gradual(5, 10, 30, "linear"), LINEAR,
         ("schedule=lightning_taylor.Gradual", "schedule.every_n_steps=5", "schedule.start_step=10",
          "schedule.end_step=30", "schedule.curve=linear")),
    Case("schedule", Iterative(10, 2, 4),
         "{class_path: Iterative, init_args: {every_n_steps: 10, channels_per_event: 2, start_step: 4}}",
         ("schedule=Iterative", "schedule.every_n_steps=10", "schedule.channels_per_event=2", "schedule.start_step=4")),
    Case("schedule", OneShot(3), "{class_path: lightning_taylor.OneShot, init_args: {step: 3}}",
         ("schedule=OneShot", "schedule.step=3")),
    Case("schedule", Gradual(every=0.02, start=0.1, end=0.66),
         "{class_path: Gradual, init_args: {every: 0.02, start: 0.1, end: 0.66}}",
         ("schedule=Gradual", "schedule.every=0.02", "schedule.start=0.1", "schedule.end=0.66")),
    Case("schedule", Gradual(end=9, unit="epochs"), "{class_path: Gradual, init_args: {end: 9, unit: epochs}}",
         ("schedule=Gradual", "schedule.end=9", "schedule.unit=epochs")),
    Case("schedule", Iterative(every=1, start=2, unit="epochs"),
         "{class_path: Iterative, init_args: {every: 1, start: 2, unit: epochs}}",
         ("schedule=Iterative", "schedule.every=1", "schedule.start=2", "schedule.unit=epochs")),
    Case("schedule", OneShot(at=1.5, unit="epochs"), "{class_path: OneShot, init_args: {at: 1.5, unit: epochs}}",
         ("schedule=OneShot", "schedule.at=1.5", "schedule.unit=epochs")),
    Case("criterion", None, "null", ("criterion=null",)),
    Case("criterion", Taylor(positions="mean"), "{class_path: lightning_taylor.Taylor, init_args: {positions: mean}}",
         ("criterion=Taylor", "criterion.positions=mean")),
    Case("criterion", TaylorBatch(), "{class_path: lightning_taylor.TaylorBatch}", ("criterion=TaylorBatch",)),
    Case("criterion", WeightMagnitude(), "lightning_taylor.WeightMagnitude", ("criterion=WeightMagnitude",)),
    Case("criterion", Random(seed=7), "{class_path: Random, init_args: {seed: 7}}",
         ("criterion=Random", "criterion.seed=7")),
    *(Case("normalization", how, how, (f"normalization={how}",)) for how in ("l2", "l1", "minmax", "none")),
    Case("normalization", None, "null", ("normalization=null",)),
    Case("cost_penalty", 1e-3, "1.0e-3", ("cost_penalty=0.001",)),
    Case("cost_penalty", 2, "2", ("cost_penalty=2",)),
    Case("ignore", ["layer4", "*.conv1"], "[layer4, '*.conv1']", ('ignore=["layer4", "*.conv1"]',)),
    Case("ignore", ["layer4", "fc"], "[layer4, fc]", ("ignore+=layer4", "ignore+=fc")),
    Case("min_channels", 4, "4", ("min_channels=4",)),
    Case("round_to", 8, "8", ("round_to=8",)),
    Case("round_to", None, "null", ("round_to=null",)),
    Case("example_inputs", [1, 3, 8, 8], "[1, 3, 8, 8]", ("example_inputs=[1, 3, 8, 8]",)),
    Case("example_inputs", None, "null", ("example_inputs=null",)),
    Case("measure_latency", False, "false", ("measure_latency=false",)),
    Case("guard", Guard("val_acc", 0.02), "{monitor: val_acc, max_drop: 0.02}",
         ("guard.monitor=val_acc", "guard.max_drop=0.02")),
    Case("guard", Guard("val_loss", 1, "rollback", "min"),
         "{monitor: val_loss, max_drop: 1, action: rollback, mode: min}",
         ("guard.monitor=val_loss", "guard.max_drop=1", "guard.action=rollback", "guard.mode=min")),
    Case("guard", None, "null", ("guard=null",)),
    Case("allow_untested_strategy", True, "true", ("allow_untested_strategy=true",)),
    Case("oracle_sample", 64, "64", ("oracle_sample=64",)),
    Case("cost_power", 0.7, "0.7", ("cost_power=0.7",)),
    Case("cost_power", None, "null", ("cost_power=null",)),
    Case("flops_penalty", 1e-3, "1.0e-3", ("flops_penalty=0.001",)),
    Case("flops_power", 0.7, "0.7", ("flops_power=0.7",)),
    Case("allow_inexact_norms", True, "true", ("allow_inexact_norms=true",)),
    *(Case("conv_groups", how, how, (f"conv_groups={how}",)) for how in ("auto", "whole", "spread")),
    *(Case("attention_heads", how, how, (f"attention_heads={how}",)) for how in ("whole", "spread")),
    Case("scope", ["net"], "[net]", ("scope+=net",)),
    Case("scope", "net", "net", ("scope=net",)),
    Case("verbose", False, "false", ("verbose=false",)),
    Case("max_removed", 0.9, "0.9", ("max_removed=0.9",)),
    Case("max_removed", {"layer4*": 0.5}, "{'layer4*': 0.5}", ('max_removed={"layer4*": 0.5}',)),
    Case("score_batches", 8, "8", ("score_batches=8",)),
    Case("score_batches", "all", "all", ("score_batches=all",)),
    Case("score_batches", None, "null", ("score_batches=null",)),
    Case("score_batches", ScoreBatches(8, spread=False), "{n: 8, spread: false}",
         ("score_batches.n=8", "score_batches.spread=false")),
    Case("score_batches", ScoreBatches(8),
         "{class_path: lightning_taylor.plan.ScoreBatches, init_args: {n: 8}}", ('score_batches={"n": 8}',)),
    Case("baseline", {"val_acc": 0.9}, "{val_acc: 0.9}", ('baseline={"val_acc": 0.9}',)),
    Case("on_event", print, "builtins.print", ("on_event=builtins.print",)),
]  # fmt: skip
IDS = [f"{case.option}={case.python!r}" for case in CASES]


def described(value: Any) -> Any:
    """An object by its class and what it holds, so that equal means of equal make."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [described(item) for item in value]
    if is_dataclass(value):
        return type(value), {field.name: described(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Criterion):
        return type(value), {name: described(item) for name, item in vars(value).items()}
    return value


def settings(pruner: TaylorPruning) -> dict[str, Any]:
    """Option -> what the callback makes of it."""
    held = {**vars(pruner), **vars(pruner.options)}
    return {k: described(held[k]) for k in inspect.signature(TaylorPruning).parameters if k not in FORMER_NAMES}


def parsed(*args: str) -> TaylorPruning:
    """The callback that a project's own LightningCLI builds from a command line."""
    quiet = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    built = LightningCLI(
        BoringModel, BoringDataModule, run=False, save_config_callback=None, trainer_defaults=quiet, args=list(args)
    )
    (pruner,) = (c for c in built.trainer.callbacks if isinstance(c, TaylorPruning))  # type: ignore[attr-defined]
    return pruner


def from_yaml(folder: Path, option: str, value: str) -> TaylorPruning:
    text = (
        "trainer:\n  callbacks:\n    - class_path: lightning_taylor.TaylorPruning\n"
        f"      init_args:\n        {option}: {value}\n"
    )
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    return parsed("--config", str(folder / "config.yaml"))


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a script: with no arguments of pytest's, and without what seed_everything leaves behind."""
    monkeypatch.setattr(sys, "argv", ["train.py"])
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_yaml_says_what_python_says(case: Case, tmp_path: Path) -> None:
    expected = settings(TaylorPruning(**{case.option: case.python}))
    assert settings(from_yaml(tmp_path, case.option, case.yaml)) == expected


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_the_command_line_says_what_python_says(case: Case) -> None:
    expected = settings(TaylorPruning(**{case.option: case.python}))
    line = [f"--trainer.callbacks.{part}" for part in case.line]
    assert settings(parsed("--trainer.callbacks=lightning_taylor.TaylorPruning", *line)) == expected


def test_every_option_has_its_cases_and_none_of_them_is_the_default_alone() -> None:
    parameters = inspect.signature(TaylorPruning).parameters
    plain = settings(TaylorPruning())
    assert {case.option for case in CASES} == set(parameters)
    for name in parameters:
        values = [settings(TaylorPruning(**{name: case.python})) for case in CASES if case.option == name]
        assert any(value != plain for value in values), name


def test_every_field_of_a_nested_class_has_its_cases() -> None:
    for option in ("target", "guard", "schedule", "score_batches"):
        for kind in {type(case.python) for case in CASES if case.option == option and is_dataclass(case.python)}:
            for field in fields(kind):
                given = [getattr(case.python, field.name) for case in CASES if type(case.python) is kind]
                assert any(value != field.default for value in given), f"{kind.__name__}.{field.name}"


def _plain_criteria() -> list[str]:
    kinds = {name: getattr(lightning_taylor, name) for name in lightning_taylor.__all__}
    return [
        name
        for name, kind in kinds.items()
        if isinstance(kind, type)
        and issubclass(kind, Criterion)
        and kind is not Criterion
        and all(p.default is not p.empty for p in inspect.signature(kind).parameters.values())
    ]


@pytest.mark.parametrize("name", _plain_criteria())
def test_every_criterion_goes_by_its_public_name(name: str, tmp_path: Path) -> None:
    expected = settings(TaylorPruning(criterion=getattr(lightning_taylor, name)()))
    assert settings(from_yaml(tmp_path, "criterion", f"lightning_taylor.{name}")) == expected
    assert settings(parsed(CALLBACK, f"--trainer.callbacks.criterion={name}")) == expected


def _combines(case: Case) -> bool:
    """Whether it can be given with all the others."""
    return case.python is not None and case.option not in FORMER_NAMES


@pytest.mark.slow
def test_what_is_printed_as_configuration_is_read_as_the_same(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """``--print_config`` is how people start their YAML."""
    line = [f"--trainer.callbacks.{part}" for case in CASES for part in case.line if _combines(case)]
    first = ["--trainer.callbacks=lightning_taylor.TaylorPruning", *line]
    with pytest.raises(SystemExit):
        parsed(*first, "--print_config")
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["trainer"]["callbacks"][0]["class_path"] == "lightning_taylor.TaylorPruning"
    (tmp_path / "config.yaml").write_text(printed, encoding="utf-8")
    assert settings(parsed("--config", str(tmp_path / "config.yaml"))) == settings(parsed(*first))


CALLBACK = "--trainer.callbacks=lightning_taylor.TaylorPruning"
SLIPS = {
    "option": ("roundto=8", "TaylorPruning has no option 'roundto'; did you mean round_to?"),
    "resource": ("target.flop=0.5", "did you mean flops?"),
    "resource in braces": ('target={"parms": 0.5}', "did you mean params?"),
    "schedule": ("schedule=Gradul", "no class is called 'Gradul'; give its import path; did you mean Gradual?"),
    "criterion": ("criterion=TaylorBach", "did you mean TaylorBatch"),
    "of the guard": ("guard.max_dorp=0.1", "did you mean max_drop?"),
    "literal": ("normalization=l3", "normalization: Expected one of 'l2', 'l1', 'minmax', 'none'. Got value: l3"),
    "number": ("min_channels=few", "min_channels: Expected int. Got value: few"),
    "range": ("round_to=0", "round_to must be a whole number of at least 1, got 0"),
    "shape": ("example_inputs=[1, 0]", "example_inputs takes what the model's forward takes"),
}


@pytest.mark.parametrize(("slip", "message"), SLIPS.values(), ids=SLIPS)
def test_a_typo_is_answered_with_the_name_that_was_meant(
    slip: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", CALLBACK, f"--trainer.callbacks.{slip}"])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in said
    assert len(said.splitlines()) <= 2
