from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_taylor.errors import PruningError
from lightning_taylor.export.verified_write import Candidate, ExportError, keep, largest_difference
from lightning_taylor.utilities.calls import Inputs


def doubling(factor: float, trials: int = 1) -> Candidate:
    """A "file" that multiplies its input."""

    def write(folder: Path) -> list[Path]:
        (folder / "net.txt").write_text(str(factor))
        return [folder / "net.txt"]

    def load(path: Path):
        read = float(path.read_text())
        return lambda inputs: inputs.args[0] * read

    return Candidate(write, load, [Inputs.of(torch.ones(2, 3))] * trials, dynamic_batch=factor == 2)


class Double(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def test_a_failed_export_is_caught_with_all_errors_of_the_package() -> None:
    assert issubclass(ExportError, PruningError)


def test_a_file_that_computes_the_same_gets_its_name(tmp_path: Path) -> None:
    exported = keep(Double(), tmp_path / "new" / "net.txt", [doubling(2)], None)
    assert exported.path.read_text() == "2"
    assert (exported.max_difference, exported.bytes, exported.inputs) == (0, 1, ((2, 3),))
    assert str(exported) == f"{exported.path}: 1e-06 MB, inputs 2x3 (any batch size), max difference 0"
    assert list(exported.path.parent.iterdir()) == [exported.path]


def test_a_file_that_computes_something_else_is_not_kept_and_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "net.txt").write_text("old")
    with pytest.raises(ExportError, match=r"net.txt differs from the model by 0.5 where 0.0002 is allowed"):
        keep(Double(), tmp_path / "net.txt", [doubling(2.5)], None)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


def test_the_second_way_is_taken_where_the_first_fails(tmp_path: Path) -> None:
    exported = keep(Double(), tmp_path / "net.txt", [doubling(3), doubling(2.00002)], None)
    assert exported.max_difference == pytest.approx(2e-5, rel=0.1)
    assert not exported.dynamic_batch


def test_a_writer_that_raises_leaves_nothing_and_says_why_in_a_line(tmp_path: Path) -> None:
    def write(folder: Path) -> list[Path]:
        (folder / "half").write_text("")
        raise KeyError("\n\nthis went wrong\nand more")

    candidate = Candidate(write, lambda path: lambda inputs: None, [Inputs.of(torch.ones(1))], dynamic_batch=False)
    with pytest.raises(ExportError, match=r"Double cannot be written as net.txt: KeyError: ") as raised:
        keep(Double(), tmp_path / "net.txt", [candidate], None)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_the_model_is_compared_in_evaluation_mode_and_its_modes_come_back(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Dropout(0.5), Double(), nn.Dropout(0.5))
    model[2].eval()
    keep(model, tmp_path / "net.txt", [doubling(2)], None)
    assert [module.training for module in model.modules()] == [True, True, True, False]


@pytest.mark.parametrize(
    ("dtype", "small", "large"),
    [
        (torch.float64, 1e-9, 1e-7),
        (torch.float32, 1e-5, 1e-3),
        (torch.float16, 5e-3, 5e-2),
        (torch.bfloat16, 2e-2, 2e-1),
    ],
)
def test_the_tolerance_follows_the_precision_and_the_size_of_the_output(
    dtype: torch.dtype, small: float, large: float
) -> None:
    expected = torch.tensor([100.0, 1.0], dtype=dtype)
    assert largest_difference(expected, expected + 100 * small, None) == pytest.approx(100 * small, rel=0.5)
    with pytest.raises(ExportError, match="differs from the model"):
        largest_difference(expected, expected + 100 * large, None)
    assert largest_difference(expected, expected + 100 * large, 1.0) > 0


def test_whole_numbers_have_to_be_equal_and_nan_in_the_same_places() -> None:
    ones = torch.ones(3, dtype=torch.int64)
    assert largest_difference(ones, ones.int(), None) == 0
    with pytest.raises(ExportError, match=r"another torch.int64 output"):
        largest_difference(ones, torch.tensor([1, 1, 2]), 1.0)
    holes = torch.tensor([1.0, math.nan, math.inf])
    assert largest_difference(holes, holes.clone(), None) == 0
    for other in ([1.0, 2.0, math.inf], [1.0, math.nan, -math.inf], [math.nan, math.nan, math.inf]):
        with pytest.raises(ExportError, match="NaN or infinity"):
            largest_difference(holes, torch.tensor(other), 1.0)


def test_a_missing_output_or_another_shape_is_a_difference() -> None:
    with pytest.raises(ExportError, match=r"outputs of shapes \[\(3,\)\], the model \[\(3,\), \(2,\)\]"):
        largest_difference([torch.ones(3), torch.ones(2)], torch.ones(3), None)
