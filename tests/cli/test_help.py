"""The help on the callback reads like documentation: every argument with its meaning, its unit and its default.

What is compared is ours: the names, the words and the defaults. How jsonargparse lays them out, and how it writes a
type, changes from release to release.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("jsonargparse", reason="needs the extra cli")
pytest.importorskip("sklearn", reason="needs the extra recipes")

from lightning_taylor import Criterion, cli, criteria

# Lightning 2.6 calls what the newest jsonargparse is about to rename.
pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
SNAPSHOT = Path(__file__).parent / "help.txt"
CALLBACK = "--trainer.callbacks=lightning_taylor.TaylorPruning"
TOPICS = {
    "TaylorPruning": ["--trainer.callbacks.help=lightning_taylor.TaylorPruning"],
    "Target": ["--trainer.callbacks.target.help"],
    "Guard": ["--trainer.callbacks.guard.help"],
    "Gradual": [CALLBACK, "--trainer.callbacks.schedule.help=Gradual"],
    "Iterative": [CALLBACK, "--trainer.callbacks.schedule.help=Iterative"],
    "OneShot": [CALLBACK, "--trainer.callbacks.schedule.help=OneShot"],
}
CRITERIA = [
    name
    for name in criteria.__all__
    if isinstance(kind := getattr(criteria, name), type) and issubclass(kind, Criterion) and kind is not Criterion
]


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """What ``lightning-taylor fit`` prints with the arguments in ``request.param``, 100 columns wide."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.setenv("PL_SEED_WORKERS", "0")
    with suppress(SystemExit):  # of a help that jsonargparse shows by itself
        cli.main(["fit", *request.param])
    return capsys.readouterr().out


def entries(text: str) -> dict[str, str]:
    """Option -> its words and its default."""
    found = {}
    for entry in re.split(r"\n  (?=--)", text.partition("\n\n")[2])[1:]:
        option = re.split(r"[ ,\n]", entry)[0]
        said = re.split(r"\n\n(?=\S)", re.sub(r"^[^\n]*?(\s{2,}|\n)", "", entry, count=1))[0]
        words, _, typed = " ".join(said.split()).partition(" (type: ")
        words, _, required = words.partition(" (required, ")
        default = re.search(r"default: (.*?)(, known subclasses|\)$)", typed)
        if not option.endswith(".help") and not words.startswith("Path to a configuration file"):
            found[option] = f"{words} [{'required' if required else f'default: {default[1]}' if default else '-'}]"
    return found


def snapshot() -> dict[str, str]:
    topics = re.split(r"^== (\w+)\n", SNAPSHOT.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return dict(zip(topics[::2], topics[1::2], strict=True))


def written(found: dict[str, str]) -> str:
    return "".join(f"{option}\n    {said}\n" for option, said in found.items())


@pytest.mark.parametrize(("topic", "shown"), TOPICS.items(), indirect=["shown"], ids=TOPICS)
def test_help_reads_as_it_was_last_looked_at(topic: str, shown: str) -> None:
    """After a change that is meant: ``WRITE_HELP=1 pytest tests/cli/test_help.py``, and read the difference."""
    found = written(entries(shown))
    if os.environ.get("WRITE_HELP"):
        kept = snapshot() if SNAPSHOT.exists() else {}
        topics = {name: {**kept, topic: found}[name] for name in TOPICS if name in kept or name == topic}
        SNAPSHOT.write_text("".join(f"== {name}\n{text}" for name, text in topics.items()), encoding="utf-8")
    assert found == snapshot()[topic]


@pytest.mark.parametrize(
    "shown", [[CALLBACK, f"--trainer.callbacks.criterion.help={c}"] for c in CRITERIA], ids=CRITERIA, indirect=True
)
def test_every_option_of_every_criterion_is_explained(shown: str) -> None:
    assert all(len(said.rpartition(" [")[0].split()) >= 3 for said in entries(shown).values()), shown
