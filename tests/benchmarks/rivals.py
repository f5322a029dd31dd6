"""Torch-Pruning in a Lightning callback, as a user of it would write one: for comparison with ``TaylorPruning``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from lightning_taylor import Gradual, Target


class TorchPruning(L.Callback):
    """Prunes at the events of the same schedule to the same FLOPs; the optimizer goes on with what is left.

    Scores are of the weights ("magnitude", L2) or of the weights and the gradients of the last batch ("taylor"). All
    groups are ranked together, as its documentation recommends for each, unless ``options`` of its pruner say
    otherwise. At every event it takes small steps until the FLOPs are as low as the schedule asks; ``rounds`` of them
    would remove all. Momentum of parameters that it replaced is lost.

    Its rounds count what was removed since the start, and a step takes every channel that scores no more than the last
    one it needs. Where many score exactly 0 (dead ReLUs of a net that was never trained: a third of VGG-16's channels)
    one step goes far ahead of its round, and the next hundred find nothing to do. Here they are skipped.
    """

    def __init__(
        self,
        importance: str,
        target: float,
        schedule: Gradual,
        example: Tensor,
        dense: int,
        flops: Callable[[nn.Module, Tensor], int],
        rounds: int = 400,
        **options: Any,
    ) -> None:
        self.importance, self.target, self.schedule, self.rounds = importance, Target(flops=target), schedule, rounds
        self.example, self.dense, self.flops = example, dense, flops
        self.options = {"global_pruning": True} | options
        self.pruner: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        import torch_pruning as tp

        kinds = {"taylor": tp.importance.GroupTaylorImportance, "magnitude": tp.importance.GroupMagnitudeImportance}
        classes = [m for m in pl_module.net.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
        self.pruner = tp.pruner.BasePruner(
            pl_module.net, self.example, kinds[self.importance](), pruning_ratio=0.99, max_pruning_ratio=0.95,
            iterative_steps=self.rounds, ignored_layers=[classes], **self.options,
        )  # fmt: skip

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if not self.schedule.is_event(step):
            return
        wanted = self.schedule.demand(step, self.target).target.flops * self.dense
        training = pl_module.net.training
        while self.flops(pl_module.net.eval(), self.example) > wanted:
            if self.pruner.current_step >= self.rounds:
                raise RuntimeError(f"Torch-Pruning cannot go down to {wanted:.3g} FLOPs at step {step}")
            before = sum(p.numel() for p in pl_module.net.parameters())
            self.pruner.step()
            if sum(p.numel() for p in pl_module.net.parameters()) == before:
                self._catch_up()
        pl_module.net.train(training)
        left, optimizer = list(pl_module.net.parameters()), trainer.optimizers[0]
        optimizer.param_groups[0]["params"] = left
        for parameter in set(optimizer.state) - set(left):
            del optimizer.state[parameter]
        torch.compiler.reset()

    def _catch_up(self) -> None:
        """To the last round whose share of the channels is gone already."""
        pruner = self.pruner
        groups = pruner.DG.get_all_groups(
            ignored_layers=pruner.ignored_layers, root_module_types=pruner.root_module_types
        )
        left = sum(pruner.DG.get_out_channels(group[0].dep.target.module) for group in groups)
        gone = 1 - left / pruner.initial_total_channels
        pruner.current_step = max(pruner.current_step, int(gone / pruner.pruning_ratio * self.rounds))
