"""What only a GPU can show. Skipped, with the reason, where there is none.

The twin of a fit on the GPU is the same fit on the CPU, in double precision where the scores have to be close.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed as dist
import zoo
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from fit.boring import Boring, Validated, loader
from fit.harness import Recording, Survivors, assert_close, fit, frozen_rate, hooks_on, lands, pruning, scores_of
from lightning_taylor import Gradual, Guard, OneShot, Taylor, TaylorBatch
from lightning_taylor.criteria.base import Scorer
from lightning_taylor.graph.channel_graph import ChannelGraph

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

GPU: dict[str, Any] = {"accelerator": "gpu", "devices": 1}
EVENTS = Gradual(every_n_steps=3, start_step=2, end_step=14)


@pytest.fixture(autouse=True)
def _exact_and_clean() -> Iterator[None]:
    """No TF32, which has ten bits of mantissa; and the process-wide switches as they were."""
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    tf32 = [backend.allow_tf32 for backend in backends]
    benchmark = torch.backends.cudnn.benchmark
    for backend in backends:
        backend.allow_tf32 = False
    yield
    for backend, was in zip(backends, tf32, strict=True):
        backend.allow_tf32 = was
    torch.backends.cudnn.benchmark = benchmark
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()


@pytest.mark.parametrize("criterion", [Taylor(), Taylor(positions="mean"), TaylorBatch()])
@pytest.mark.parametrize(
    ("precision", "rtol"), [("32-true", 1e-4), ("bf16-mixed", 0.25), ("bf16-true", 0.25), ("16-mixed", 0.05)]
)
def test_scores_are_those_of_the_cpu(criterion: Any, precision: Any, rtol: float, tmp_path: Path) -> None:
    expected = scores_of(frozen_rate, tmp_path, criterion=criterion)
    found = scores_of(frozen_rate, tmp_path, criterion=criterion, precision=precision, **GPU)
    assert all(score_C.device.type == "cpu" and score_C.dtype == torch.float32 for score_C in found.values())
    assert_close(found, expected, rtol)


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed", "bf16-true"])
def test_a_fit_in_any_precision_lands_and_goes_on(precision: Any, tmp_path: Path) -> None:
    module = Boring(zoo.Residual(), lr=0.05)
    pruner = pruning(schedule=EVENTS)
    survivors = Survivors(pruner)
    fit(module, pruner, tmp_path, others=[survivors], precision=precision, **GPU)
    assert pruner.reached
    assert survivors.still == []
    assert hooks_on(module) == 0


OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "fused adam": ("AdamW", {"fused": True}),
    "capturable adam": ("AdamW", {"capturable": True}),
    "fused capturable adam": ("Adam", {"fused": True, "capturable": True, "amsgrad": True}),
    "foreach adam": ("AdamW", {"foreach": True}),
    "fused sgd": ("SGD", {"fused": True, "momentum": 0.9, "lr": 0.05}),
    "capturable nadam": ("NAdam", {"capturable": True}),
    "capturable rmsprop": ("RMSprop", {"capturable": True, "centered": True, "momentum": 0.9}),
    "capturable rprop": ("Rprop", {"capturable": True}),
}


class OnDevice(L.Callback):
    """Notes where each kind of optimizer state lives before the first event and at the end."""

    def __init__(self) -> None:
        self.places: list[dict[str, tuple[str, torch.dtype]]] = []

    def note(self, trainer: L.Trainer) -> None:
        states = trainer.optimizers[0].state.values()
        self.places.append({k: (v.device.type, v.dtype) for s in states for k, v in s.items() if isinstance(v, Tensor)})

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 1:
            self.note(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.note(trainer)
        for p, state in trainer.optimizers[0].state.items():
            assert all(v.shape == p.shape for v in state.values() if isinstance(v, Tensor) and v.ndim)


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_state_stays_where_it_was(name: str, precision: Any, tmp_path: Path) -> None:
    optimizer, settings = OPTIMIZERS[name]
    places, pruner = OnDevice(), pruning(schedule=EVENTS)
    module = Boring(zoo.OptionA(), optimizer, **settings)
    lands(module, tmp_path, pruner=pruner, others=[places], precision=precision, **GPU)
    assert places.places[0] == places.places[1]


def test_a_fused_optimizer_and_a_scaler_do_not_show_in_the_scores(tmp_path: Path) -> None:
    """Lightning leaves the gradients scaled for an optimizer that unscales in its own step."""
    for criterion in (Taylor(), TaylorBatch()):
        expected = scores_of(frozen_rate, tmp_path, criterion=criterion)
        fused: Callable[[], Boring] = lambda: frozen_rate(fused=True)  # noqa: E731
        found = scores_of(fused, tmp_path, criterion=criterion, precision="16-mixed", **GPU)
        assert_close(found, expected, 0.05)


@pytest.mark.parametrize("benchmark", [False, True])
def test_channels_last_stays_and_gives_the_same_scores(benchmark: bool, tmp_path: Path) -> None:
    """With cudnn.benchmark every size is timed anew; it must not pick a kernel of an old one."""

    def last(rate: float = 0.0) -> Boring:
        return Boring(zoo.Residual().to(memory_format=torch.channels_last), "SGD" if not rate else "AdamW", lr=rate)

    options = {"benchmark": benchmark, **GPU}
    expected = scores_of(lambda: frozen_rate(zoo.Residual), tmp_path)
    assert_close(scores_of(last, tmp_path, **options), expected, 1e-3)
    module = last(1e-3)
    lands(module, tmp_path, pruner=pruning(schedule=EVENTS), **options)
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in module.parameters() if p.ndim == 4)


@pytest.mark.parametrize("static_graph", [False, True])
def test_one_process_of_nccl(static_graph: bool, tmp_path: Path) -> None:
    environment = dict(os.environ)
    strategy = DDPStrategy(process_group_backend="nccl", static_graph=static_graph)
    try:
        lands(Boring(zoo.Residual()), tmp_path, pruner=pruning(schedule=EVENTS), strategy=strategy, **GPU)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        for name in set(os.environ) - set(environment):
            del os.environ[name]


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_net_gives_the_same_scores_and_lands(mode: str, tmp_path: Path) -> None:
    def compiled(rate: float = 0.0) -> Boring:
        module = Boring(zoo.OptionA(), "AdamW" if rate else "SGD", lr=rate)
        module.net.compile(mode=mode)
        return module

    assert_close(scores_of(compiled, tmp_path, **GPU), scores_of(frozen_rate, tmp_path), 1e-3)
    lands(compiled(1e-3), tmp_path, pruner=pruning(schedule=Gradual(6, 2, 14)), **GPU)


class Memory(L.Callback):
    """What is allocated after each batch, when neither activations nor gradients are left."""

    def __init__(self) -> None:
        self.bytes: list[int] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        for p in pl_module.parameters():
            p.grad = None
        torch.cuda.synchronize()
        self.bytes.append(torch.cuda.memory_allocated())


def test_an_event_frees_what_it_removes(tmp_path: Path) -> None:
    """Weights, two moments each, and an averaged copy: four times the parameters that went, without a collection."""
    wide = nn.Sequential(
        nn.Conv2d(3, 512, 3, padding=1), nn.ReLU(), nn.Conv2d(512, 512, 3, padding=1), nn.ReLU(),
        nn.Conv2d(512, 512, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 2),
    )  # fmt: skip
    memory, pruner, module = Memory(), pruning(schedule=OneShot(6)), Boring(wide)
    before = sum(p.numel() for p in module.parameters())
    gc.disable()
    try:
        fit(module, pruner, tmp_path, others=[EMAWeightAveraging(decay=0.9), memory], **GPU)
    finally:
        gc.enable()
    removed = before - sum(p.numel() for p in module.parameters())
    freed = memory.bytes[4] - memory.bytes[8]
    assert removed > before // 4
    assert freed > 0.9 * 4 * 4 * removed
    # And nothing is gathered from step to step.
    assert max(memory.bytes[8:]) - min(memory.bytes[8:]) < 2**20


class Strict(Recording):
    """From its third batch on a scorer may not wait for the device: torch raises if it does."""

    def scorer(self, model: nn.Module, graph: ChannelGraph, *, event: int = 0) -> Scorer:
        scorer = super().scorer(model, graph, event=event)
        end_batch, self.calls = scorer.end_batch, 0

        def strictly(**kwargs: Any) -> None:
            self.calls += 1
            torch.cuda.set_sync_debug_mode("error" if self.calls > 2 else "default")
            try:
                end_batch(**kwargs)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        scorer.end_batch = strictly  # type: ignore[method-assign]
        return scorer


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_scoring_does_not_wait_for_the_device(precision: Any, tmp_path: Path) -> None:
    criterion = Strict()
    lands(
        Boring(zoo.Residual()),
        tmp_path,
        pruner=pruning(schedule=OneShot(12), criterion=criterion),
        precision=precision,
        **GPU,
    )
    assert criterion.calls > 8


def test_a_rollback_comes_back_to_the_device(tmp_path: Path) -> None:
    class Told(Validated):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_acc", (0.9, 0.9, 0.5)[min(self.current_epoch, 2)])

    module = Told(zoo.Residual(), fused=True)
    guard = Guard("val_acc", max_drop=0.1, action="rollback")
    pruner = pruning(schedule=Gradual(4, 8, 28, "linear"), guard=guard)
    with (
        pytest.warns(UserWarning, match="went back to the last good size"),
        pytest.warns(UserWarning, match="was not reached"),
    ):
        fit(module, pruner, tmp_path, loader(), loader(n=8), max_epochs=5, **GPU)
    assert all(torch.isfinite(p).all() for p in module.parameters())


@pytest.mark.parametrize("criterion", [Taylor(), TaylorBatch()])
def test_scores_are_the_same_bits_every_time(criterion: Any, tmp_path: Path) -> None:
    """With deterministic convolutions nothing else varies; no reduction of ours is by atomic additions."""
    flags = (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        one, other = (scores_of(frozen_rate, tmp_path, criterion=criterion, **GPU) for _ in range(2))
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = flags
    assert all(torch.equal(one[name], other[name]) for name in one)
