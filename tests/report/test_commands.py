"""What can be pasted after a fit names what the reader has."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from torch import nn

from lightning_taylor.fit.report import class_path
from lightning_taylor.report.commands import config_beside, next_commands
from lightning_taylor.report.summary import Change, PruningSummary

ONE = Change(1, 1)
MAINS = {
    "a script": ({"__file__": "some/where/train.py"}, "train.Net"),
    "a module that python -m runs": ({"__spec__": SimpleNamespace(name="nets.train")}, "nets.train.Net"),
    "a script that cannot be imported": ({"__file__": "train-1.py"}, ""),
    "a notebook": ({}, ""),
}  # fmt: skip


@pytest.mark.parametrize(("names", "expected"), MAINS.values(), ids=MAINS)
def test_a_class_of_the_script_that_runs_is_named_as_it_would_be_imported(
    names: dict[str, object], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = ModuleType("__main__")
    vars(main).update(names)
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert class_path(type("Net", (nn.Module,), {"__module__": "__main__"})()) == expected
    assert class_path(nn.ReLU()) == "torch.nn.modules.activation.ReLU"


def test_the_configuration_of_the_fit_comes_along_if_lightning_cli_saved_one(tmp_path: Path) -> None:
    checkpoint = tmp_path / "version 0" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    assert config_beside(str(checkpoint)) == config_beside("") == ""
    config = checkpoint.parent.parent / "config.yaml"
    config.write_text("model: {width: 24}\n")
    summary = PruningSummary(
        {}, ONE, ONE, ONE, (), checkpoint=str(checkpoint), model="nets.Net", config=config_beside(str(checkpoint))
    )
    for line in next_commands(summary)[1:]:
        assert shlex.split(line)[-4:] == ["--model", "nets.Net", "--config", str(config)]
