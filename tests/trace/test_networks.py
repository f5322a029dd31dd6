"""The committed tables of the campaigns are whole and well-formed, and nothing in them is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torchvision
from campaigns.table import HEAD, ORDER, write_section

NETWORKS = Path(__file__).parent.parent.parent / "notebooks" / "networks.md"
EXACT = 1e-10
NOISE = 100


def section(name: str) -> str:
    return NETWORKS.read_text().partition(f"<!-- {name} -->")[2].partition(f"<!-- end of {name} -->")[0]


def rows(name: str) -> list[dict[str, str]]:
    lines = [line for line in section(name).partition("### ")[0].splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[1:]]


def number(cell: str) -> float:
    return float(cell.split()[0])


def test_every_model_of_torchvision_has_one_row() -> None:
    assert sorted(row["model"] for row in rows("architectures")) == sorted(torchvision.models.list_models())


@pytest.mark.parametrize("name", ["architectures", "foreign"])
def test_nothing_is_wrong_and_the_summary_counts_the_rows(name: str) -> None:
    found = [row["status"] for row in rows(name)]
    assert not {"wrong", "error"} & set(found)
    counted = ", ".join(f"{found.count(status)} {status}" for status in reversed(ORDER) if status in found)
    assert f"\n{counted}.\n" in section(name)


@pytest.mark.parametrize("name", ["architectures", "foreign"])
def test_what_is_right_is_as_exact_as_the_network_is_steady(name: str) -> None:
    for row in rows(name):
        if row["status"] == "right" and "float32" not in row["difference"]:
            assert number(row["difference"]) <= max(EXACT, NOISE * number(row["own noise"])), row
            assert 0 < number(row["removable"]) <= 100, row


@pytest.mark.parametrize("name", ["architectures", "foreign"])
def test_a_row_that_is_not_right_is_explained_in_words(name: str) -> None:
    for row in rows(name):
        assert row["status"] in ("right", "frozen-only") or f"- **{row['model']}** (" in section(name)


def test_the_file_names_its_commands_and_no_place_of_a_machine() -> None:
    text = NETWORKS.read_text()
    assert text.startswith(HEAD)
    assert not re.search(r"(?<![\w.:/])/(?:tmp|home|root|usr|work)/", text)
    for name in re.findall(r"<!-- (\w+) -->", text):
        assert f"tests/campaigns/{name}.py" in section(name)


def test_a_section_takes_the_place_of_its_older_self(tmp_path: Path) -> None:
    path = tmp_path / "table.md"
    write_section(path, "one", "eins")
    write_section(path, "two", "zwei")
    write_section(path, "one", "drei")
    text = path.read_text()
    assert text.startswith(HEAD)
    assert "eins" not in text
    assert text.index("drei") < text.index("<!-- end of one -->") < text.index("zwei")
    write_section(path, "one", "drei")
    assert path.read_text() == text
