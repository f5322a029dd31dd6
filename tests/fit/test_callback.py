from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import zoo
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from fit.boring import Boring, Validated, loader, trainer
from fit.harness import report_in
from lightning_taylor import (
    Gradual,
    Iterative,
    NothingToPruneError,
    OneShot,
    Random,
    TargetUnreachableError,
    Taylor,
    TaylorBatch,
    TaylorPruning,
    UnsupportedModelError,
    WeightMagnitude,
)
from lightning_taylor.fit.distributed import check_strategy


def hooks_on(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


def pruning(tmp_path: Path | None = None, **kwargs: Any) -> TaylorPruning:
    return TaylorPruning(**{"target": 0.5, "measure_latency": False, **kwargs})


def fit(module: L.LightningModule, callback: TaylorPruning, tmp_path: Path, **kwargs: Any) -> L.Trainer:
    run = trainer([callback], default_root_dir=tmp_path, **kwargs)
    run.fit(module, loader())
    return run


@pytest.mark.parametrize("name", ["vgg", "residual", "concat", "inverted", "option_a", "bare", "decoder"])
def test_an_ordinary_fit_lands_on_the_target(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    callback, module = pruning(), Boring(zoo.NETS[name][0]())
    size = 6 if name == "bare" else 12
    run = trainer([callback], default_root_dir=tmp_path)
    run.fit(module, loader(size=size))
    summary = report_in(tmp_path)
    remaining = summary["flops"]["after"] / summary["flops"]["before"]
    assert remaining <= 0.5
    graph = callback.graph
    assert graph is not None
    assert {n: tuple(p.shape) for n, p in module.named_parameters()}.items() <= dict(graph.shapes).items()
    assert hooks_on(module) == 0


@pytest.mark.parametrize("criterion", [Taylor(), TaylorBatch(), WeightMagnitude(), Random()])
@pytest.mark.parametrize("schedule", [None, OneShot(step=5), Gradual(2, 2, 16), Iterative(1, 3)])
def test_every_criterion_works_with_every_schedule(criterion: Any, schedule: Any, tmp_path: Path) -> None:
    callback, module = pruning(criterion=criterion, schedule=schedule), Boring(zoo.Residual())
    fit(module, callback, tmp_path)
    assert callback.graph is not None
    assert callback.reached


def test_a_second_fit_does_not_prune_again(tmp_path: Path) -> None:
    callback, module = pruning(), Boring(zoo.Residual())
    run = fit(module, callback, tmp_path)
    shapes = [p.shape for p in module.parameters()]
    run.fit_loop.max_epochs = 6
    run.fit(module, loader())
    assert [p.shape for p in module.parameters()] == shapes


def test_the_optimizer_keeps_its_parameters_and_steps_them(tmp_path: Path) -> None:
    class Watching(Boring):
        def on_train_end(self) -> None:
            held = [p for g in self.trainer.optimizers[0].param_groups for p in g["params"]]
            assert [id(p) for p in held] == [id(p) for p in self.parameters()]
            state = self.trainer.optimizers[0].state
            assert all(state[p]["exp_avg"].shape == p.shape for p in held)

    fit(Watching(zoo.Residual()), pruning(), tmp_path)


def test_progress_is_logged_and_falls_to_the_target(tmp_path: Path) -> None:
    callback, module = pruning(), Boring(zoo.Residual())
    logger = CSVLogger(tmp_path)
    fit(module, callback, tmp_path, logger=logger, log_every_n_steps=1)
    rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("pruning/flops")
    values = [float(row.split(",")[column]) for row in rows[1:] if row.split(",")[column]]
    assert values[0] == 1.0
    assert values == sorted(values, reverse=True)
    assert values[-1] <= 0.5
    assert {"pruning/params", "pruning/channels"} <= set(rows[0].split(","))
    assert (Path(logger.log_dir) / "pruning.json").exists()


def test_metrics_before_and_after_are_reported(tmp_path: Path) -> None:
    callback, module = pruning(schedule=Gradual(2, 9, 20)), Validated(zoo.Residual())
    run = trainer([callback], default_root_dir=tmp_path)
    run.fit(module, loader(), loader(seed=1))
    metrics = report_in(tmp_path)["metrics"]
    assert set(metrics["val_acc"]) >= {"before", "after"}


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
def test_the_report_knows_widths_scores_curve_and_sizes(tmp_path: Path) -> None:
    module = Validated(zoo.Residual())
    trainer([pruning(schedule=Gradual(3, 9, 18))], default_root_dir=tmp_path).fit(module, loader(), loader(seed=1))
    found = report_in(tmp_path)
    assert [event["step"] for event in found["events"]] == [12, 15, 18]
    assert {layer: module.get_submodule(layer).weight.shape[0] for layer in found["widths"][-1]} == found["widths"][-1]
    assert found["widths"][0] != found["widths"][-1]
    assert [(row["step"], set(row)) for row in found["curve"]] == [
        (s, {"step", "flops", "val_acc"}) for s in (8, 16, 24)
    ]
    assert (
        found["curve"][-1]["flops"] == found["flops"]["after"] < found["curve"][0]["flops"] == found["flops"]["before"]
    )
    for groups in found["scores"].values():
        assert len(groups) == 4
        assert all(len(q) == 7 and q == sorted(q) for q in groups.values())
    environment = found["environment"]
    assert environment["batch_size"] == 8
    assert environment["device"] == "cpu"
    assert environment["versions"]["torch"] == torch.__version__.split("+")[0]
    for name in ("state_dict_bytes", "peak_bytes"):
        assert 0 < environment[name]["pruned"] < environment[name]["dense"]
    assert (tmp_path / "pruning.html").read_text("utf-8").count("data:image/png") == 4


def test_a_resumed_fit_reports_the_whole_of_it(tmp_path: Path) -> None:
    """Taken up between the first and the second event, the report is that of the unbroken fit."""

    class Saving(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    def run(checkpoint: Path | None, *others: L.Callback) -> dict[str, Any]:
        torch.manual_seed(0)
        fitter = trainer([pruning(schedule=Gradual(4, 4, 20)), *others], default_root_dir=tmp_path)
        fitter.fit(Validated(zoo.Residual()), loader(), loader(seed=1), ckpt_path=checkpoint)
        return report_in(tmp_path)

    whole, rest = run(None, Saving()), run(tmp_path / "0.ckpt")
    assert len(whole["events"]) >= 3
    assert whole["scores"]["first"] != whole["scores"]["last"]
    for part in ("widths", "scores", "curve", "layers"):
        assert whole[part] == rest[part]


def test_the_report_measures_latency_at_the_batch_that_it_trained_on(tmp_path: Path) -> None:
    fit(Boring(zoo.Residual()), pruning(measure_latency=True), tmp_path)
    assert report_in(tmp_path)["latency"]["dense"]["median"] > 0


def test_an_unreachable_target_stops_before_any_step(tmp_path: Path) -> None:
    module = Boring(zoo.Residual())
    before = [p.detach().clone() for p in module.parameters()]
    with pytest.raises(TargetUnreachableError, match=r"flops=1e-05 cannot be met"):
        fit(module, pruning(target=1e-5), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    assert hooks_on(module) == 0


def test_nothing_prunable_stops_before_any_step(tmp_path: Path) -> None:
    module = Boring(nn.Sequential(nn.Flatten(), nn.Linear(432, 2)))
    with pytest.raises(NothingToPruneError, match="normalised or ordered along the channels"):
        fit(module, pruning(), tmp_path)


def test_a_pattern_that_matches_nothing_stops_before_any_step(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'layer9' matches no layer"):
        fit(Boring(zoo.Residual()), pruning(ignore=["layer9"]), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": 5}, "target flops=5"),
        ({"target": 0.0}, "target flops=0.0"),
        ({"min_channels": 0}, "min_channels"),
        ({"round_to": 0}, "round_to"),
        ({"ignore": "fc"}, r"write \['fc'\]"),
        ({"normalization": "l3"}, "l3"),
        ({"cost_penalty": -1.0}, "cost_penalty"),
    ],
)
def test_bad_values_are_refused_by_the_constructor(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaylorPruning(**arguments)


def test_a_schedule_that_the_fit_never_reaches_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="100"):
        fit(Boring(zoo.Residual()), pruning(schedule=OneShot(step=100)), tmp_path)


def test_sharding_strategies_are_refused_by_name() -> None:
    with pytest.raises(MisconfigurationException, match="does not work with FSDPStrategy"):
        check_strategy(FSDPStrategy(), allow_untested=False)
    check_strategy(FSDPStrategy(), allow_untested=True)


def test_channels_that_only_a_bare_parameter_reads_are_named_when_the_target_needs_them(tmp_path: Path) -> None:
    with pytest.raises(TargetUnreachableError, match=r"Taylor\(.*\) cannot score net.stem"):
        fit(Boring(zoo.Shared()), pruning(criterion=Taylor()), tmp_path)
    callback = pruning(criterion=TaylorBatch())
    fit(Boring(zoo.Shared()), callback, tmp_path)
    assert callback.graph is not None
    assert callback.reached


def test_an_only_event_before_anything_is_scored_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only event after the first step"):
        fit(Boring(zoo.Residual()), pruning(schedule=OneShot(step=1)), tmp_path)


def test_a_training_step_that_calls_no_module_is_explained(tmp_path: Path) -> None:
    class Bare(Boring):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return (self.net.weight * batch[0].mean()).sum()

    with pytest.raises(UnsupportedModelError, match="example_inputs"):
        fit(Bare(nn.Linear(3, 3)), pruning(), tmp_path)


def test_example_inputs_trace_before_the_first_batch(tmp_path: Path) -> None:
    class Whole(Boring):
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    callback = pruning(example_inputs=torch.randn(2, 3, 12, 12), schedule=OneShot(step=1))
    fit(Whole(zoo.Residual()), callback, tmp_path)
    assert callback.graph is not None
    assert callback.reached


@pytest.mark.parametrize("error", [RuntimeError("user"), KeyboardInterrupt()])
def test_an_exception_leaves_no_hook_and_a_whole_model(error: BaseException, tmp_path: Path) -> None:
    class Breaks(Boring):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            if self.global_step == 9:
                raise error

    module, callback = Breaks(zoo.Residual()), pruning()
    with pytest.raises((RuntimeError, SystemExit)):
        fit(module, callback, tmp_path)
    assert hooks_on(module) == 0
    assert module.net(torch.randn(2, 3, 12, 12)).shape == (2, 5)


def test_fast_dev_run_and_later_stages_are_left_alone(tmp_path: Path) -> None:
    callback, module = pruning(), Boring(zoo.Residual())
    fit(module, callback, tmp_path, fast_dev_run=True)
    trainer([callback], default_root_dir=tmp_path).validate(Validated(module.net), loader(), verbose=False)
    assert next(iter(module.net.stem.parameters())).shape[0] == 8


@pytest.mark.slow
def test_accumulation_clipping_and_several_epochs(tmp_path: Path) -> None:
    callback, module = pruning(), Boring(zoo.Residual(), "SGD", momentum=0.9)
    fit(module, callback, tmp_path, accumulate_grad_batches=3, gradient_clip_val=0.5, max_epochs=6)
    assert callback.graph is not None
    assert callback.reached


def test_an_iterative_schedule_that_ends_early_says_so(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="was not reached"):
        fit(Boring(zoo.Residual()), pruning(schedule=Iterative(10, 1)), tmp_path)
