"""The settings of TaylorPruning by their own names on the command line of ``fit``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

pytest.importorskip("jsonargparse", reason="needs the extra cli")
pytest.importorskip("sklearn", reason="needs the extra recipes")

from lightning_taylor.cli.shipped_configs import resolve_configs, shipped_configs
from lightning_taylor.cli.short_forms import expand_short_forms

pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
Run = Callable[..., tuple[int, str, str]]
DIGITS = ["fit", "--config", str(shipped_configs()["digits"])]
ADDED = "--trainer.callbacks+=lightning_taylor.TaylorPruning"
GRADUAL = "--trainer.callbacks.schedule=lightning_taylor.Gradual"


@pytest.mark.parametrize(
    ("given", "written_out"),
    [
        (["--target", "0.5"], ["--trainer.callbacks.target", "0.5"]),
        (["--target.params=0.4"], ["--trainer.callbacks.target.params=0.4"]),
        (["--round-to=8"], ["--trainer.callbacks.round_to=8"]),
        (["--ignore+=fc", "--ignore+=stem"], ["--trainer.callbacks.ignore+=fc", "--trainer.callbacks.ignore+=stem"]),
        (["--schedule.every_n_steps", "5"], ["--trainer.callbacks.schedule.every_n_steps", "5"]),
        (["--schedule=OneShot", "--schedule.step=3"],
         ["--trainer.callbacks.schedule=OneShot", "--trainer.callbacks.schedule.step=3"]),
    ],
)  # fmt: skip
def test_a_setting_goes_by_its_own_name(given: list[str], written_out: list[str]) -> None:
    assert expand_short_forms([*DIGITS, *given]) == [*DIGITS, *written_out]


def test_other_options_keep_their_places_and_values() -> None:
    given = [*DIGITS, "--target", "0.5", "--trainer.max_epochs", "3", "--model.lr=0.1"]
    assert expand_short_forms(given)[:-2] == [*DIGITS, "--trainer.max_epochs", "3", "--model.lr=0.1"]
    assert expand_short_forms(["validate", "--verbose", "false"]) == ["validate", "--verbose", "false"]


@pytest.mark.parametrize(
    ("before", "added"),
    [
        (["--model=my.Net"], [ADDED, GRADUAL]),
        (["--model=my.Net", "--trainer.callbacks=TaylorPruning"], [GRADUAL]),
        (["--model=my.Net", "--trainer.callbacks=Timer"], [ADDED, GRADUAL]),
        (
            ["--trainer.callbacks", '{"class_path": "TaylorPruning", "init_args": {"schedule": {"class_path": "X"}}}'],
            [],
        ),
    ],
)
def test_what_a_setting_needs_is_added(before: list[str], added: list[str]) -> None:
    *_, last = expanded = expand_short_forms(["fit", *before, "--schedule.every=0.1"])
    assert expanded[1 + len(before) : -1] == added
    assert last == "--trainer.callbacks.schedule.every=0.1"


def test_a_setting_that_would_go_to_another_callback_is_refused(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"trainer": {"callbacks": ["lightning_taylor.TaylorPruning", "Timer"]}}))
    code, _, err = run("fit", "--config", path, "--target=0.5")
    assert (code, err) == (
        2, "lightning-taylor: error: --target is for the last callback, which is Timer: put TaylorPruning last\n"
    )  # fmt: skip


def test_a_typo_is_answered_with_the_short_form_that_was_meant(run: Run) -> None:
    assert "no option 'taget'; did you mean target?" in run("fit", "--taget=0.5")[2]


def test_the_configuration_has_what_the_short_forms_say(run: Run) -> None:
    code, out, _ = run("fit", "--target=0.3", "--schedule.every_n_steps=2", "--print_config")
    settings = yaml.safe_load(out)["trainer"]["callbacks"][0]["init_args"]
    schedule = settings["schedule"]["init_args"]
    assert (code, settings["target"], schedule["every_n_steps"], schedule["start"]) == (0, 0.3, 2, 0.35)


def test_the_help_on_fit_begins_with_three_examples(run: Run) -> None:
    code, out, _ = run("fit", "--help")
    first, *_ = out.split("\n\n")
    assert code == 0
    assert [line.split()[:2] for line in first.splitlines()] == [["examples:"], *3 * [["lightning-taylor", "fit"]]]
    assert "usage: lightning-taylor fit [options]" in out


def test_the_main_job_is_not_chosen_over_a_class_of_the_users() -> None:
    assert expand_short_forms(resolve_configs(["fit", "--model=my.Net", "--target=0.5"]))[:2] == [
        "fit",
        "--model=my.Net",
    ]
