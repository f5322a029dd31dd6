"""Compiled models: the same scores and sizes as uncompiled, at any number of sizes, with the compiler still at work."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn
from torch.utils.data import DataLoader
from zoo_heads import SPREAD

from fit.boring import Boring, loader, trainer
from fit.harness import Survivors, assert_close, fit, hooks_on, pruning, report_in, scores_of
from lightning_taylor import OBD, ActivationMean, Gradual, Iterative, OneShot, Taylor, TaylorBatch
from lightning_taylor.plan import ScoreBatches

pytestmark = [
    # The compiler's own code against this Python and this torch.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.reset()
    os.environ.pop("_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR", None)  # inductor's own, for its compiled code


def scores(make: Callable[[], L.LightningModule], folder: Path, *loaders: Any, step: int = 8, **kwargs: Any) -> Any:
    """Give the scores at an only event, after which nothing more is run or compiled."""
    return scores_of(make, folder, *loaders, step=step, max_steps=step, **kwargs)


class Compiled(Boring):
    """One of the ways to compile; ``forward`` is what ``module.compile()`` compiles."""

    def __init__(self, how: str = "none", backend: str = "eager", rate: float = 1e-3) -> None:
        super().__init__(zoo.OptionA(), "AdamW" if rate else "SGD", lr=rate)
        if how == "child":
            self.net = torch.compile(self.net, backend=backend)  # type: ignore[assignment]
        if how == "child in place":
            self.net.compile(backend=backend)
        if how == "module in place":
            self.compile(backend=backend)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])


def compiled(how: str, backend: str = "eager", rate: float = 1e-3) -> Any:
    module = Compiled(how, backend, rate)
    return torch.compile(module, backend=backend) if how == "module" else module


WAYS = ["module", "module in place", "child", "child in place"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "criterion"),
    [*((how, Taylor()) for how in WAYS), ("module", TaylorBatch()), ("child in place", TaylorBatch())],
)
def test_scores_equal_those_of_the_uncompiled_run(how: str, criterion: Any, tmp_path: Path) -> None:
    expected = scores(lambda: Compiled(rate=0.0), tmp_path, criterion=criterion)
    found = scores(lambda: compiled(how, rate=0.0), tmp_path, criterion=criterion)
    # A compiled child is wrapped by a module of its own, whose name is part of the path.
    assert_close({name.replace("._orig_mod", ""): score_C for name, score_C in found.items()}, expected)
    assert torch._dynamo.utils.counters["frames"]["total"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "criterion"),
    [
        *((name, criterion) for name in ("stock", "own_three") for criterion in (Taylor(), TaylorBatch())),
        ("swin_v2", Taylor()),
        pytest.param("swin_v2", TaylorBatch(), marks=pytest.mark.slow),
    ],
)
def test_coordinates_of_heads_are_scored_in_compiled_code(name: str, criterion: Any, tmp_path: Path) -> None:
    def module(backend: str = "") -> Boring:
        torch.manual_seed(0)
        make, side = SPREAD[name]
        made = Boring(nn.Sequential(nn.Upsample((side, side)), make()), "SGD", lr=0.0)
        if backend:
            made.net.compile(backend=backend)
        return made

    options = {"attention_heads": "spread", "target": 0.8}
    expected = scores(module, tmp_path, criterion=criterion, options=options)
    found = scores(lambda: module("eager"), tmp_path, criterion=criterion, options=options)
    assert_close(found, expected)
    assert torch._dynamo.utils.counters["frames"]["total"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("how", ["module", *(pytest.param(how, marks=pytest.mark.slow) for how in WAYS[1:])])
def test_a_compiled_fit_lands_where_the_uncompiled_one_does(how: str, tmp_path: Path) -> None:
    widths = []
    for way in ("none", how):
        torch.manual_seed(0)
        pruner = pruning(schedule=Gradual(3, 2, 14))
        survivors, module = Survivors(pruner), compiled(way)
        fit(module, pruner, tmp_path, others=[survivors])
        assert pruner.reached
        assert survivors.steps > 1
        assert survivors.still == []
        net = module.net
        assert hooks_on(net) == 0
        assert net(torch.randn(2, 3, 12, 12)).shape == (2, 4)
        widths.append([tuple(p.shape) for p in net.parameters()])
    assert widths[0] == widths[1]


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_net_of_torchs_own_class_is_pruned(backend: str, tmp_path: Path) -> None:
    """The compiler wraps those in a function of its own, by which nobody sees whose they are."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3))
    pruner = pruning(schedule=OneShot(4), criterion=TaylorBatch())
    fit(Boring(torch.compile(net, backend=backend)), pruner, tmp_path, max_steps=6)  # type: ignore[arg-type]
    assert pruner.reached
    assert [module.out_channels < 8 for module in net if isinstance(module, nn.Conv2d)] == [True] * 3


@pytest.mark.slow
@pytest.mark.parametrize("how", ["module", "child in place"])
def test_more_sizes_than_the_compiler_keeps(how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Dynamo gives a frame up after eight sizes, and says so; here there are a dozen."""
    pruner = pruning(schedule=Iterative(1, 1), target=0.4)
    with caplog.at_level(logging.WARNING, "torch._dynamo"):
        fit(compiled(how), pruner, tmp_path, max_steps=16)
    assert pruner.reached
    report = report_in(tmp_path)
    assert len(report["events"]) > torch._dynamo.config.recompile_limit
    assert [r.message for r in caplog.records if "recompile_limit" in r.getMessage()] == []
    assert not any("limit" in key for key in torch._dynamo.utils.counters["frames"])
    assert not any("recompile_limit" in reason for reason in torch._dynamo.utils.counters["graph_break"])


@pytest.mark.slow
def test_the_report_counts_what_was_compiled(tmp_path: Path) -> None:
    counts = []
    for how in ("none", "child in place"):
        torch._dynamo.utils.counters.clear()
        pruner = pruning(schedule=Gradual(3, 2, 14))
        fit(compiled(how), pruner, tmp_path)
        report = report_in(tmp_path)
        counts.append(report.get("compiled_graphs"))
        sizes = len(report["events"]) + 1
    assert counts[0] is None
    # At least one graph for every size of the network.
    assert counts[1] >= sizes


def whole(rate: float = 0.0) -> Compiled:
    """Compiled in a way that allows no break of the graph."""
    module = Compiled(rate=rate)
    module.net.compile(backend="aot_eager", fullgraph=True)
    return module


@pytest.mark.slow
def test_a_fit_that_begins_with_a_smaller_batch_is_compiled_for_the_others(tmp_path: Path) -> None:
    """As one that is resumed at the last batch of an epoch; what is seen first must not decide for good."""
    small, large = (next(iter(loader(n=n, batch=n))) for n in (4, 8))
    batches: Any = DataLoader([small, small, *[large] * 10], batch_size=None)
    fit(whole(), pruning(schedule=OneShot(10), criterion=Taylor()), tmp_path, batches, max_epochs=1)
    # Scored as one graph, and once more when nothing is scored any more.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("batches", [loader(), loader(n=60)], ids=["even", "with a smaller last batch"])
@pytest.mark.parametrize("criterion", [Taylor(), Taylor(positions="mean"), TaylorBatch()])
def test_a_graph_without_breaks_gives_the_scores_of_the_uncompiled_run(
    batches: Any, criterion: Any, tmp_path: Path
) -> None:
    """Eight batches an epoch, the event in the second one: a batch of four examples is among them."""
    options: dict[str, Any] = {"criterion": criterion, "step": 12}
    expected = scores(lambda: Compiled(rate=0.0), tmp_path, batches, **options)
    found = scores(whole, tmp_path, batches, **options)
    assert_close(found, expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


@pytest.mark.slow
def test_a_graph_without_breaks_lands(tmp_path: Path) -> None:
    pruner = pruning(schedule=Gradual(3, 2, 14))
    survivors, module = Survivors(pruner), whole(1e-3)
    fit(module, pruner, tmp_path, others=[survivors])
    assert pruner.reached
    assert survivors.still == []
    assert hooks_on(module) == 0


@pytest.mark.slow
def test_while_it_is_scored_the_net_is_one_graph_a_size(tmp_path: Path) -> None:
    pruner = pruning(schedule=Gradual(4, 4, 12))
    fit(compiled("child in place", "aot_eager"), pruner, tmp_path)
    events = len(report_in(tmp_path)["events"])
    assert sum(torch._dynamo.utils.counters["graph_break"].values()) == 0
    # One for each size; the first two batches, which are traced and which find out the sizes, run uncompiled.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == events + 1


@pytest.mark.slow
@pytest.mark.parametrize("criterion", [Taylor(), TaylorBatch()], ids=repr)
def test_to_score_some_steps_and_not_others_takes_two_graphs_a_size(criterion: Any, tmp_path: Path) -> None:
    """One with the hooks, and one without; neither is compiled again when the other had its turn."""
    pruner = pruning(schedule=Gradual(6, 0, 18), criterion=criterion, score_batches=ScoreBatches(3))
    fit(compiled("child in place", "aot_eager"), pruner, tmp_path)
    sizes = len(report_in(tmp_path)["events"]) + 1
    assert sizes > 2
    assert sum(torch._dynamo.utils.counters["graph_break"].values()) == 0
    # Where there are no hooks it is but one; and the last size is not scored.
    expected = 2 * sizes - 1 if isinstance(criterion, Taylor) else sizes
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == expected


@pytest.mark.slow
@pytest.mark.parametrize("criterion", [ActivationMean(), OBD()], ids=repr)
def test_hooks_that_break_the_graph_leave_it_whole_where_nothing_is_scored(criterion: Any, tmp_path: Path) -> None:

    class Counting(L.Callback):
        def on_train_batch_end(self, run: L.Trainer, *_: Any) -> None:
            breaks.append(sum(torch._dynamo.utils.counters["graph_break"].values()))
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])

    breaks: list[int] = []
    graphs: list[int] = []
    pruner = pruning(schedule=OneShot(12), criterion=criterion, score_batches=1)
    fit(compiled("child in place"), pruner, tmp_path, others=[Counting()], max_steps=12)
    # The first batch is traced, the last one is scored.
    assert (set(breaks[:11]), set(graphs[1:11])) == ({0}, {1})
    assert breaks[11]


@pytest.mark.slow
def test_what_the_user_asked_of_the_compiler_comes_back(tmp_path: Path) -> None:
    class Stance(L.Callback):
        def on_train_epoch_end(self, run: L.Trainer, *_: Any) -> None:
            if run.current_epoch == 0:
                run.save_checkpoint(file)

        def on_train_batch_end(self, *_: Any) -> None:
            from torch._dynamo.eval_frame import _stance

            stances.append(_stance.stance)

    stances: list[str] = []
    file = tmp_path / "half.ckpt"
    with torch.compiler.set_stance("eager_on_recompile"):
        for resumed in (None, file):
            run = trainer([pruning(schedule=Gradual(4, 4, 20)), Stance()], default_root_dir=tmp_path)
            run.fit(whole(), loader(), ckpt_path=resumed)
    assert set(stances) == {"eager_on_recompile"}


@pytest.mark.slow
def test_once_the_target_is_reached_the_whole_net_is_one_graph_again(tmp_path: Path) -> None:
    """Nothing of the taps is left in the compiled code."""

    class Counting(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
            if trainer.global_step == 10:
                torch._dynamo.utils.counters.clear()

    pruner = pruning(schedule=Gradual(2, 2, 6))
    fit(compiled("child in place"), pruner, tmp_path, others=[Counting()])
    assert pruner.reached
    # Nothing was compiled anew from a while after the last event on.
    assert sum(torch._dynamo.utils.counters["graph_break"].values()) == 0
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 0


@pytest.mark.slow
def test_ahead_of_time_autograd_gives_the_same_scores(tmp_path: Path) -> None:
    expected = scores(lambda: Compiled(rate=0.0), tmp_path)
    found = scores(lambda: compiled("child in place", "aot_eager", rate=0.0), tmp_path)
    assert_close(found, expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor_lands_with_the_scores_of_the_uncompiled_run(tmp_path: Path) -> None:
    expected = scores(lambda: Compiled(rate=0.0), tmp_path)
    found = scores(lambda: compiled("child in place", "inductor", rate=0.0), tmp_path)
    assert_close(found, expected, 1e-3)
    pruner = pruning(schedule=Gradual(6, 2, 14))
    survivors = Survivors(pruner)
    fit(compiled("module", "inductor"), pruner, tmp_path, others=[survivors])
    assert pruner.reached
    assert survivors.still == []
