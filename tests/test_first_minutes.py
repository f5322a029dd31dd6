"""The newcomer's page is a whole script, names no place of one machine, and is cut where it says so."""

from __future__ import annotations

import re
from pathlib import Path

from campaigns.first_minutes import HEAD, PAGE, TAIL, WIDEST, Newcomer, commands_of, neutral, shortened, typed_again
from markdown_blocks import blocks_of

from lightning_taylor.cli.commands import EVERY_COMMAND


def test_its_commands_exist_and_four_people_type_them() -> None:
    typed = [command for block in blocks_of(PAGE) if block.language == "console" for command in commands_of(block.text)]
    words = {word for command in typed for word in re.findall(r"^lightning-taylor (\w+)", command)}
    assert words - set(EVERY_COMMAND) == {"inspct"}
    assert words >= {"inspect", "export", "benchmark", "report", "fit"}
    assert len({block.section for block in blocks_of(PAGE)}) == 4


def test_it_names_no_place_of_the_machine_that_it_was_made_on() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert not re.findall(r"(?:^|[\s'\"(=])/(?:tmp|root|home|work|usr)/\S*", page)
    assert "http://" not in page
    assert "https://" not in page


def test_typing_it_again_keeps_all_but_the_answers(tmp_path: Path) -> None:
    page = "# A\n\n`a.txt`\n\n```text\nhello\n```\n\n```console\n$ cat a.txt  # 3 s, exit 2\nold\n$ false\n```\n"
    (tmp_path / "project").mkdir()
    newcomer = Newcomer(tmp_path, tmp_path / "no.whl", 60, "", tmp_path / "project")
    again = typed_again(page, newcomer)
    assert re.sub(r"[\d.]+ s", "0 s", again) == page.replace("3 s, exit 2\nold", "0 s\nhello").replace(
        "false", "false  # 0 s, exit 1"
    )
    assert commands_of(again) == commands_of(page) == ["cat a.txt", "false"]


def test_a_section_that_begins_with_a_file_has_a_folder_of_its_own(tmp_path: Path) -> None:
    listed = "```console\n$ ls\n```\n"
    page = f"# A\n\n`a.txt`\n\n```text\n```\n\n## B\n\n{listed}\n## C\n\n`c.txt`\n\n```text\n```\n\n{listed}"
    (tmp_path / "project").mkdir()
    again = typed_again(page, Newcomer(tmp_path, tmp_path / "no.whl", 60, "", tmp_path / "project"))
    assert re.findall(r"^\w\.txt$", again, re.M) == ["a.txt", "c.txt"]


def test_an_answer_is_cut_in_the_middle_and_its_paths_are_anybodys() -> None:
    lines = [str(number) for number in range(100)]
    cut = shortened(lines)
    assert cut[:HEAD] + cut[HEAD + 1 :] == lines[:HEAD] + lines[-TAIL:]
    assert cut[HEAD] == f"[... {100 - HEAD - TAIL} lines left out]"
    text = "\x1b[31mEpoch 0\rEpoch 1   \n\n\n/home/me/project/a.py of https://a.b/c\n" + "a" * 300
    assert neutral(text, Path("/home/me")) == ["Epoch 1", "", "~/project/a.py of [...]", "a" * WIDEST + " [...]"]
