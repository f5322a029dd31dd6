"""Trainers and modules of ``pytorch_lightning``, Lightning's other name: what works there, and what says it cannot."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn

pytest.importorskip("pytorch_lightning")

import pytorch_lightning as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.strategies import DDPStrategy, FSDPStrategy

import lightning_taylor
import lightning_taylor.pl
from fit.boring import loader
from fit.harness import hooks_on
from fit.nets import layers
from fit.rank_launch import all_well, on_ranks
from fit.resuming import SCHEDULE, StatefulLoader
from lightning_taylor import PrunedCheckpointMixin, TaylorPruning, load_pruned
from lightning_taylor.fit.distributed import check_strategy

pytestmark = pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists and is not empty")
CLASSES = {"plain": TaylorPruning, "pl": lightning_taylor.pl.TaylorPruning}


class Net(pl.LightningModule):
    """Has dropout, and random numbers that travel with the checkpoint."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = layers(width, 5)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(F.dropout(batch[0], 0.1)), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-3)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["rng"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.rng = checkpoint["rng"]

    def on_train_start(self) -> None:
        if hasattr(self, "rng"):
            torch.set_rng_state(self.rng)


class Scored(PrunedCheckpointMixin, Net):
    """Takes pruned weights by itself; its score rises with the steps."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("score", float(self.global_step))


class Namesake(L.LightningModule):
    """The same network under the other name."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.net = layers(width, 5)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    configure_optimizers = Net.configure_optimizers


def pruning(kind: str = "plain", **kwargs: Any) -> Any:
    return CLASSES[kind](**{"schedule": SCHEDULE, "measure_latency": False, **kwargs})


def trainer(*callbacks: Any, **kwargs: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(callbacks=list(callbacks), accelerator="cpu", **{"max_epochs": 3, **quiet, **kwargs})


def every_step(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=1)


def optimizer_tensors(run: pl.Trainer) -> Iterator[Tensor]:
    for state in run.optimizers[0].state.values():
        yield from (state[name] for name in sorted(state))


@pytest.mark.parametrize("kind", CLASSES)
def test_a_fit_lands_and_leaves_nothing_on_the_module(kind: str, tmp_path: Path) -> None:
    module, pruner = Net(), pruning(kind)
    trainer(pruner, default_root_dir=tmp_path, enable_checkpointing=False).fit(module, loader())
    assert pruner.reached
    assert module.net[0].out_channels == module.net[1].num_features < 8
    assert dict(pruner.graph.shapes).items() >= {n: tuple(p.shape) for n, p in module.named_parameters()}.items()
    assert hooks_on(module) == 0
    assert (tmp_path / "pruning.json").exists()


@pytest.mark.parametrize("step", [1, 7, 10])
@pytest.mark.parametrize("kind", CLASSES)
def test_resume_equals_uninterrupted(kind: str, step: int, tmp_path: Path) -> None:
    """Before, between and in the middle of the events, by checkpoints of pytorch_lightning's own ModelCheckpoint."""
    torch.manual_seed(1)
    whole = trainer(pruning(kind), every_step(tmp_path), default_root_dir=tmp_path)
    whole.fit(Net(), StatefulLoader())
    resumed = trainer(pruning(kind), every_step(tmp_path), default_root_dir=tmp_path)
    resumed.fit(Net(), StatefulLoader(), ckpt_path=str(tmp_path / f"step={step}.ckpt"))
    ends = [run.lightning_module.state_dict() for run in (whole, resumed)]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert all(map(torch.equal, optimizer_tensors(whole), optimizer_tensors(resumed)))


@pytest.mark.parametrize("kind", CLASSES)
def test_what_remains_is_logged_at_every_step(kind: str, tmp_path: Path) -> None:
    log = CSVLogger(tmp_path)
    run = trainer(pruning(kind), logger=log, log_every_n_steps=1, default_root_dir=tmp_path)
    run.fit(Net(), loader())
    with open(Path(log.log_dir, "metrics.csv"), encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    flops = [float(row["pruning/flops"]) for row in rows if row.get("pruning/flops")]
    assert len(flops) >= 24
    assert flops == sorted(flops, reverse=True)
    assert flops[-1] <= 0.5 < flops[0]


def test_the_best_checkpoint_is_a_pruned_one_and_loads(tmp_path: Path) -> None:
    best = lightning_taylor.pl.PrunedModelCheckpoint(tmp_path, monitor="score", mode="min", save_last=True)
    module = Scored()
    run = trainer(pruning("pl"), best, default_root_dir=tmp_path)
    run.fit(module, loader(), loader(seed=1))
    assert run.callbacks[-1] is best  # type: ignore[attr-defined]
    assert best.best_model_path.endswith("step=16.ckpt")
    for loaded in (load_pruned(Net, best.best_model_path), Scored.load_from_checkpoint(best.best_model_path)):
        assert loaded.net[0].out_channels == module.net[0].out_channels < 8


def test_a_checkpoint_goes_on_under_the_other_name(tmp_path: Path) -> None:
    trainer(pruning("pl"), every_step(tmp_path), default_root_dir=tmp_path).fit(Net(), StatefulLoader())
    pruner = TaylorPruning(schedule=SCHEDULE, measure_latency=False)
    run = L.Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False,
                    enable_progress_bar=False, enable_model_summary=False, callbacks=[pruner],
                    default_root_dir=tmp_path)  # fmt: skip
    with pytest.warns(UserWarning, match="add the following callbacks: ..ModelCheckpoint"):
        run.fit(Namesake(), StatefulLoader(), ckpt_path=str(tmp_path / "step=7.ckpt"))
    assert pruner.reached
    assert pruner.remaining["flops"] <= 0.5


def test_an_accumulation_scheduler_counts_in_the_schedule(tmp_path: Path) -> None:
    accumulate, pruner = GradientAccumulationScheduler({0: 1, 1: 4}), pruning(schedule=None)
    trainer(pruner, accumulate, default_root_dir=tmp_path, enable_checkpointing=False).fit(Net(), loader())
    assert pruner.reached


def test_strategies_are_told_apart_by_what_they_are() -> None:
    check_strategy(DDPStrategy(), allow_untested=False)  # type: ignore[arg-type]
    with pytest.raises(MisconfigurationException, match="does not work with FSDPStrategy"):
        check_strategy(FSDPStrategy(), allow_untested=False)  # type: ignore[arg-type]


def on_rank(rank: int, folder: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    pruner = pruning("pl")
    run = trainer(pruner, devices=2, strategy=DDPStrategy(process_group_backend="gloo"), default_root_dir=folder,
                  enable_checkpointing=False, use_distributed_sampler=False)  # fmt: skip
    module = Net()
    run.fit(module, StatefulLoader(rank=rank))
    assert pruner.reached
    return {name: p.detach().clone() for name, p in module.named_parameters()}


@pytest.mark.slow
def test_ranks_stay_equal_to_the_last_bit(tmp_path: Path) -> None:
    zero, one = all_well(on_ranks(2, on_rank, str(tmp_path)))
    assert zero["net.0.weight"].shape[0] < 8
    assert zero.keys() == one.keys()
    assert all(torch.equal(zero[name], one[name]) for name in zero)


def test_a_checkpoint_callback_of_the_other_name_is_refused_with_the_one_to_use(tmp_path: Path) -> None:
    best = lightning_taylor.PrunedModelCheckpoint(tmp_path, monitor="score")
    run = trainer(pruning(), best, default_root_dir=tmp_path)
    with pytest.raises(MisconfigurationException, match=r"use lightning_taylor\.pl\.PrunedModelCheckpoint"):
        run.fit(Scored(), loader(), loader())


def test_a_module_of_the_other_name_is_refused_by_lightning() -> None:
    with pytest.raises(TypeError, match=r"must be a `LightningModule`.* got `Namesake`"):
        trainer(pruning()).fit(Namesake(), loader())  # type: ignore[arg-type]


def test_load_pruned_wants_a_module_of_either_name() -> None:
    with pytest.raises(TypeError, match="takes a LightningModule class"):
        load_pruned(nn.Module, "any.ckpt")  # type: ignore[type-var]


def test_its_classes_are_callbacks_of_both_names() -> None:
    for kind in (lightning_taylor.pl.TaylorPruning, lightning_taylor.pl.PrunedModelCheckpoint):
        assert issubclass(kind, L.Callback)
        assert issubclass(kind, pl.Callback)
        assert kind.__doc__


WITHOUT = """
import sys, lightning_taylor
print("pytorch_lightning" in sys.modules)
sys.modules["pytorch_lightning"] = None
try:
    import lightning_taylor.pl
except ModuleNotFoundError as error:
    print(error)
"""


def test_it_is_imported_only_by_who_asks_for_it_and_says_how_to_install_it() -> None:
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT]
    imported, said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert imported == "False"
    assert "there is no pytorch_lightning: pip install pytorch-lightning, or use lightning_taylor itself" in said


def test_zoo_networks_are_pruned_alike_under_both_names(tmp_path: Path) -> None:
    """From one seed, the two Trainers end with the same weights, bit for bit."""
    ends = []
    for kind, host in ((Net, pl), (Namesake, L)):
        torch.manual_seed(0)
        module = kind()
        module.net = zoo.OptionA()
        run = host.Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False,
                           enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
                           callbacks=[pruning()])  # fmt: skip
        module.training_step = lambda batch, i, net=module.net: F.cross_entropy(net(batch[0]), batch[1])
        run.fit(module, StatefulLoader())
        ends.append(module.state_dict())
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
