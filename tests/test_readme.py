"""What the README says can be typed as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from markdown_blocks import ROOT, blocks_of, run_python

from lightning_taylor.cli.commands import COMMANDS
from lightning_taylor.cli.lightning_cli import TaylorCLI
from lightning_taylor.cli.main import main

README = ROOT / "README.md"


def blocks(language: str) -> list[str]:
    return [block.text for block in blocks_of(README) if block.language == language]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_blocks_run(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_python(blocks("python")[number], f"README block {number}")


@pytest.mark.parametrize("number", range(len(blocks("yaml"))))
def test_yaml_blocks_are_configurations(number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(blocks("yaml")[number])
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", "digits", "--config", str(config), "--print_config"])
    assert stopped.value.code in (0, None)
    assert "lightning_taylor.TaylorPruning" in capsys.readouterr().out


def test_commands_name_what_exists() -> None:
    commands = [line for text in blocks("bash") for line in text.splitlines()]
    known = r"(pip install uv && )?uv run (lightning-taylor (\w+)|pytest)\b"
    assert commands
    asked = [re.match(known, line) for line in commands]
    assert all(asked)
    there = {*TaylorCLI.subcommands(), *COMMANDS}
    assert {hit[3] for hit in asked if hit and hit[3]} <= there


def test_the_readme_stays_within_a_screenful_or_three() -> None:
    assert len(README.read_text().splitlines()) <= 180
