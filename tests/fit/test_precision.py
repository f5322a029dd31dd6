"""Whatever the numbers are computed in: the scores are those of float32, and what is not finite does not count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from fit.boring import Boring, loader
from fit.harness import Recording, assert_close, fit, frozen_rate, hooks_on, lands, pruning, scores_of
from lightning_taylor import OneShot, Taylor, TaylorBatch
from lightning_taylor.scores.formulas import taylor_contributions

BF16 = 0.06  # eight bits of mantissa, through three layers and back


def scaled(scale: float = 2.0**10, **kwargs: Any) -> MixedPrecision:
    """Float16 on the CPU, with a scaler: what Lightning would replace by bfloat16."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale, **kwargs))


def poisoned(batches: tuple[int, ...], value: float = float("inf"), n: int = 64) -> DataLoader[Any]:
    """The usual data with some batches in which one pixel is no number."""
    data = loader(n).dataset
    assert isinstance(data, TensorDataset)
    x, y = data.tensors
    x = x.clone()
    for batch in batches:
        x[batch * 8 + 1, 0, 0, 0] = value
    return DataLoader(TensorDataset(x, y), 8)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "16-mixed", "64-true"])
def test_a_fit_in_any_precision_lands_and_goes_on(precision: Any, tmp_path: Path) -> None:
    plugins = [scaled()] if precision == "16-mixed" else []
    options = {"plugins": plugins} if plugins else {"precision": precision}
    # Large enough for a step of eight bits to show.
    module = Boring(zoo.Residual(), lr=0.05)
    lands(module, tmp_path, **options)
    expected = {"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(precision, torch.float32)
    assert {p.dtype for p in module.parameters()} == {expected}


@pytest.mark.slow
@pytest.mark.parametrize("criterion", [Taylor(), Taylor(positions="mean"), TaylorBatch()])
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_scores_in_bfloat16_are_those_of_float32_and_kept_in_it(criterion: Any, precision: Any, tmp_path: Path) -> None:
    expected = scores_of(frozen_rate, tmp_path, criterion=criterion)
    recording = Recording(criterion)
    torch.manual_seed(0)
    fit(frozen_rate(), pruning(criterion=recording, schedule=OneShot(8)), tmp_path, precision=precision)
    # The square doubles the error.
    assert_close(recording.seen[0], expected, BF16 * (4 if isinstance(criterion, TaylorBatch) else 1))
    sums = recording.scorers[0].metric
    assert sums is not None
    assert sums.total.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("criterion", [Taylor(), TaylorBatch()])
def test_the_scale_of_the_loss_does_not_show_in_the_scores(criterion: Any, tmp_path: Path) -> None:
    expected = scores_of(frozen_rate, tmp_path, criterion=criterion)
    for scale, fused, accumulate in ((1.0, False, 1), (2.0**10, True, 1), (2.0**16, False, 1), (2.0**16, True, 2)):
        if accumulate == 2 and isinstance(criterion, TaylorBatch):
            continue  # its unit is the optimizer step
        found = scores_of(
            lambda fused=fused: frozen_rate(fused=fused),
            tmp_path,
            criterion=criterion,
            step=8 // accumulate,
            accumulate_grad_batches=accumulate,
            plugins=[scaled(scale)],
        )
        assert_close(found, expected, 0.01)


def test_products_beyond_the_range_of_float16_count() -> None:
    x = torch.full((2, 3, 4, 4), 200.0, dtype=torch.float16)
    for grad in (x * 2, (x * 2).to(memory_format=torch.channels_last)):
        assert taylor_contributions(x, grad, dim=1).tolist() == [[16 * 200.0 * 400.0] * 3] * 2


@pytest.mark.parametrize("criterion", [Taylor(), TaylorBatch()])
def test_a_batch_that_the_scaler_skips_does_not_count(criterion: Any, tmp_path: Path) -> None:
    """Batches 2 and 5 are infinite; what is left are the scores of a fit without them."""
    x, y = loader().dataset.tensors  # type: ignore[attr-defined]
    keep = [i for i in range(64) if i // 8 not in (2, 5)]
    without = DataLoader(TensorDataset(x[keep], y[keep]), 8)
    options: dict[str, Any] = {"criterion": criterion, "plugins": [scaled()]}
    expected = scores_of(frozen_rate, tmp_path, without, step=6, **options)
    options["plugins"] = [scaler := scaled()]
    found = scores_of(frozen_rate, tmp_path, poisoned((2, 5)), step=8, max_epochs=2, **options)
    assert scaler.scaler is not None
    assert scaler.scaler.get_scale() == 2.0**10 / 2**4  # two batches in each of two epochs
    # The scale has changed in between, and with it the rounding.
    assert_close(found, expected, 0.01)


@pytest.mark.parametrize("scaler", [False, True])
@pytest.mark.parametrize("criterion", [Taylor(), TaylorBatch()])
def test_losses_that_are_no_numbers_let_the_events_wait_and_say_why(
    scaler: bool, criterion: Any, tmp_path: Path
) -> None:
    class Broken(Boring):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * float("nan")

    module, pruner = Broken(zoo.Residual()), pruning(schedule=OneShot(4), criterion=criterion)
    plugins = [scaled()] if scaler else []
    with (
        pytest.warns(UserWarning, match=r"event of step 4 has to wait: no channel has a score: no finite gradient"),
        pytest.warns(UserWarning, match=r"target .* was not reached"),
    ):
        fit(module, pruner, tmp_path, plugins=plugins)
    # Only a scaler saves the weights from such a step.
    assert scaler == all(bool(p.isfinite().all()) for p in module.parameters())
    assert module.net.stem[0].weight.shape[0] == 8
    assert hooks_on(module) == 0


def test_an_event_that_had_to_wait_catches_up_with_the_first_finite_batch(tmp_path: Path) -> None:
    pruner = pruning(schedule=OneShot(4), criterion=Taylor())  # which sees nothing of the first batch
    with pytest.warns(UserWarning, match="event of step 4 has to wait"):
        lands(Boring(zoo.OptionA()), tmp_path, poisoned((1, 2, 3, 4)), pruner=pruner, plugins=[scaled()])
    record = json.loads((tmp_path / "pruning.json").read_text())
    assert [event["step"] for event in record["events"]] == [6]


def test_a_scale_that_changes_within_a_batch_is_that_of_each_backward_pass(tmp_path: Path) -> None:
    """Two optimizers step, and each of them lets the scaler grow."""

    class Twice(Boring):
        def __init__(self) -> None:
            super().__init__(zoo.OptionA(), "SGD", lr=0.0)
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            for optimizer in self.optimizers():  # type: ignore[union-attr]
                loss = super().training_step(batch, batch_idx)
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()

        def configure_optimizers(self) -> Any:
            body, head = list(self.net.a.parameters()), list(self.net.head.parameters())
            return [torch.optim.SGD(body, 0.0), torch.optim.SGD(head, 0.0)]

    expected = scores_of(Twice, tmp_path)
    assert_close(scores_of(Twice, tmp_path, plugins=[scaled(64.0, growth_interval=3)]), expected, 0.01)
