"""Several ranks with different data prune alike, to the last bit; the guards that see to it are needed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import zoo
from torch import Tensor

from fit.rank_fits import Case, Ranked, RankedByHand, fit, fits, fits_one_after_another, spread
from fit.rank_launch import on_ranks
from fit.resuming import run
from lightning_taylor import PruningError, TaylorBatch, UncoupledChannelsError, UnsupportedModelError
from lightning_taylor.fit import callback
from lightning_taylor.fit import distributed as together
from lightning_taylor.fit.session import Session
from lightning_taylor.plan.measured_search import Selection

CASES = {
    "plain": Case(),
    "find_unused_parameters": Case(zoo.Auxiliary, ddp={"find_unused_parameters": True}),
    "static_graph": Case(ddp={"static_graph": True}),
    "gradient_as_bucket_view": Case(ddp={"gradient_as_bucket_view": True}),
    "accumulation": Case(trainer={"accumulate_grad_batches": 2, "max_epochs": 4}),
    "accumulation in bucket views": Case(
        ddp={"gradient_as_bucket_view": True}, trainer={"accumulate_grad_batches": 2, "max_epochs": 4}
    ),
    "manual optimization": Case(module=RankedByHand),
    "manual optimization, static graph": Case(module=RankedByHand, ddp={"static_graph": True}),
    "momentum, clipped": Case(optimizer=("SGD", {"lr": 1e-2, "momentum": 0.9}), trainer={"gradient_clip_val": 0.5}),
    "gradients as scores": Case(pruning={"criterion": TaylorBatch()}),
}


@pytest.mark.slow
def test_ranks_stay_equal_to_the_last_bit(tmp_path: Path) -> None:
    for name, results in fits_one_after_another(2, CASES, tmp_path).items():
        assert len(results[0]["events"]) >= 3, name
        assert results[0]["reached"], name
        assert spread(results) == dict.fromkeys(spread(results), 0.0), name
        assert all(step["gradients"] for step in results[0]["steps"]), name


@pytest.mark.slow
def test_without_wrapping_again_the_ranks_would_part(tmp_path: Path) -> None:
    def meddle(rank: int) -> None:
        together.widths_changed = lambda *_: None  # type: ignore[assignment]

    # The reducer waits for accumulators that are gone, and takes their parameters for unused. Where it does not look
    # for unused ones, it raises in the next step.
    found = spread(fits(2, Case(ddp={"find_unused_parameters": True}), tmp_path, meddle))
    assert found["gradients"] > 1e-3
    assert found["parameters"] > 1e-4


def _disagreeing(rank: int) -> None:
    """Rank 1 is told to remove as many channels as rank 0, but others."""
    honest = together.share

    def share(strategy: Any, make: Callable[[], Any]) -> Any:
        made = honest(strategy, make)
        if rank == 1 and isinstance(made, Selection):
            graph = make.__self__.graph  # type: ignore[attr-defined]
            made = Selection(**{**vars(made), "remove": _shifted(made.remove, graph)})
        return made

    together.share = share


def _shifted(remove: Any, graph: Any) -> dict[str, Tensor]:
    return {name: ((index_R + 1) % graph.groups[name].size).sort().values for name, index_R in remove.items()}


@pytest.mark.slow
def test_ranks_that_were_told_to_remove_other_channels_stop_before_they_do(tmp_path: Path) -> None:
    results = on_ranks(2, fit, Case(), str(tmp_path), _disagreeing)
    assert [type(result) for result in results] == [UncoupledChannelsError] * 2
    assert all("nothing was removed" in str(result) for result in results)


@pytest.mark.slow
def test_without_the_comparison_other_channels_of_equal_number_would_go_unnoticed(tmp_path: Path) -> None:
    def meddle(rank: int) -> None:
        _disagreeing(rank)
        together.check_agreement = lambda *_: None  # type: ignore[assignment]

    found = spread(fits(2, Case(), tmp_path, meddle))
    assert found["optimizers"] > 1e-5
    assert found["parameters"] > 1e-5


class UnpicklableError(RuntimeError):
    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "seen"),
    [(partial(UnsupportedModelError, "no"), UnsupportedModelError), (partial(UnpicklableError, 1, 2), PruningError)],
    ids=["portable", "unpicklable"],
)
@pytest.mark.parametrize("place", ["trace", "decision"])
def test_an_error_on_rank_zero_is_raised_on_every_rank(
    place: str, error: Callable[[], Exception], seen: type[Exception], tmp_path: Path
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error()

    def meddle(rank: int) -> None:
        if place == "trace":
            callback.trace_step = fail if rank == 0 else callback.trace_step
        else:
            Session.decide = fail if rank == 0 else Session.decide  # type: ignore[method-assign]

    results = on_ranks(2, fit, Case(), str(tmp_path), meddle, wait=60)
    assert [type(result) for result in results] == [seen, seen]


class Forgiving(Ranked):
    """Goes on where a gradient is not finite; one batch of rank 1 has such a loss."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * float("inf") if self.global_rank == 1 and self.global_step == 3 else loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        for p in self.parameters():
            if p.grad is not None:
                p.grad.nan_to_num_(0.0, 0.0, 0.0)


@pytest.mark.slow
def test_a_rank_whose_batch_is_not_finite_changes_the_scores_of_all_alike(tmp_path: Path) -> None:
    results = fits(2, Case(module=Forgiving), tmp_path)
    assert results[0]["reached"]
    assert spread(results) == dict.fromkeys(spread(results), 0.0)


@pytest.mark.slow
def test_a_rank_draws_no_pictures_for_its_report(tmp_path: Path) -> None:
    """To draw them takes longer than the fit, and the tests fit on hundreds of ranks."""
    assert on_ranks(1, fit_with_a_report, tmp_path) == [None]
    page = (tmp_path / "pruning.html").read_text("utf-8")
    assert "net.stem.0" in page
    assert "data:image/png" not in page


def fit_with_a_report(rank: int, folder: Path) -> None:
    run(folder, "plain")
