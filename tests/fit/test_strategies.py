"""Which strategies are taken, which are refused by name, and what comes back from child processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from fit.boring import loader, trainer
from fit.nets import Mixed, Net, pruning
from fit.rank_launch import alone
from lightning_taylor.fit.distributed import check_strategy


class SingleDeviceXLAStrategy(SingleDeviceStrategy):
    """Only the name of Lightning's, which needs torch_xla."""


def deepspeed() -> Strategy:
    # Its constructor wants the package; the class itself is there without it.
    return DeepSpeedStrategy.__new__(DeepSpeedStrategy)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (FSDPStrategy, "FSDPStrategy"),
        (ModelParallelStrategy, "ModelParallelStrategy"),
        (deepspeed, "DeepSpeedStrategy"),
        (lambda: SingleDeviceXLAStrategy("cpu"), "SingleDeviceXLAStrategy"),
    ],
)
def test_what_shards_parameters_is_refused_by_name_unless_it_is_allowed(make: Any, name: str) -> None:
    with pytest.raises(MisconfigurationException, match=rf"{name}.*single device or strategy='ddp'.*allow_untested"):
        check_strategy(make(), allow_untested=False)
    check_strategy(make(), allow_untested=True)


@pytest.mark.parametrize("make", [lambda: SingleDeviceStrategy("cpu"), DDPStrategy])
def test_single_devices_and_ddp_are_taken(make: Any) -> None:
    check_strategy(make(), allow_untested=False)


def _launched(kind: type[Net], strategy: str, folder: Path) -> tuple[nn.Module, int]:
    """What is left of a net by ranks that Lightning itself forks or spawns, for which this process has to be fresh."""
    module = kind()
    run = trainer([pruning()], default_root_dir=folder, strategy=strategy, devices=2, max_epochs=4)
    run.fit(module, loader(), loader(seed=1))
    return module.net, len(module._state_dict_hooks)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp_fork", pytest.param("ddp_spawn", marks=pytest.mark.slow)])
def test_a_fit_in_children_brings_the_pruned_model_back(strategy: str, tmp_path: Path) -> None:
    net, hooks = alone(_launched, Mixed, strategy, tmp_path)
    assert net[0].out_channels == net[1].num_features < 8
    assert net(torch.randn(2, 3, 12, 12)).shape == (2, 5)
    assert hooks == 0


@pytest.mark.slow
def test_a_fit_in_children_of_a_module_that_cannot_take_the_result_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="rank 0 raised") as failed:
        alone(_launched, Net, "ddp_fork", tmp_path)
    assert re.search(r"class Net\(PrunedCheckpointMixin, ...\)", str(failed.value.__cause__))


SCRIPT = """
import sys, torch
from fit.boring import loader, trainer
from fit.nets import Net, pruning
if __name__ == "__main__":
    module, run = Net(), trainer([pruning()], default_root_dir=sys.argv[1], strategy="ddp", devices=2, max_epochs=4)
    run.fit(module, loader(), loader(seed=1))
    torch.save(module.state_dict(), f"{sys.argv[1]}/rank{run.global_rank}.pt")
"""


@pytest.mark.slow
def test_a_script_that_lightning_starts_again_for_every_rank_prunes_alike(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, script, tmp_path], env=environment, check=True, timeout=600, capture_output=True)
    one, other = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert one["net.0.weight"].shape[0] < 8
    assert all(torch.equal(one[name], other[name]) for name in one if "running_" not in name)
