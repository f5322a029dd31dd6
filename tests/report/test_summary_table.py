from __future__ import annotations

from dataclasses import replace
from io import StringIO

from rich.console import Console

from lightning_taylor.measure.latency import Latency, LatencyComparison
from lightning_taylor.report.summary import Change, LayerChange
from lightning_taylor.report.summary_table import render, summary_tables

LONG = "backbone." * 9 + "conv"


def cells(text, first):
    """The cells of the one table row that begins with this."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    (row,) = [row for row in rows if row[0] == first]
    return row


def test_the_plain_table_shows_layers_totals_and_the_verdict(summary):
    text = render(summary)
    assert cells(text, "first") == ["first", "8", "2", "25%"]
    assert cells(text, "1 other layer") == ["1 other layer", "", "", "100%"]
    assert cells(text, "FLOPs") == ["FLOPs", "80", "20", "25.0%", "50.0%"]
    assert cells(text, "parameters") == ["parameters", "40", "10", "25.0%", ""]
    assert cells(text, "val_acc") == ["val_acc", "0.9", "0.875", "", ""]
    assert "Target met after 1 event: asked for flops 50.0% (got 25.0%)." in text


def test_a_missed_target_is_not_to_be_overlooked(summary):
    assert "TARGET NOT MET" in render(replace(summary, asked={"flops": 0.2}))


def test_frozen_layers_are_counted_by_reason(summary):
    frozen = {"a": "unknown [op]", "b": "reaches the output", "c": "unknown [op]"}
    text = render(replace(summary, frozen=frozen, unscored={"g": "no gradient"}))
    assert cells(text, "2") == ["2", "unknown [op]"]
    assert "no gradient" in text


def test_what_stayed_is_named_with_what_would_help(summary):
    why = "its statistics run over the channels (native_layer_norm in norm), so removing one changes the others"
    text = render(replace(summary, frozen={f"block[{i}]": why for i in range(5)} | {"head": "reaches the output"}))
    said = " ".join(line.strip("| ") for line in text.splitlines())
    assert "block[0], block[1], block[2] and 2 more way out: allow_inexact_norms, or BatchNorm" in said
    assert "reaches the output head" in said
    assert "head way out" not in said


def test_an_unclear_latency_is_not_given_as_a_fraction(summary):
    same = Latency(0.010, 0.009, 0.011, 30)
    unclear = LatencyComparison(same, same, speedup=1.02, low=0.97, high=1.05)
    text = render(replace(summary, latency=unclear))
    assert cells(text, "latency") == ["latency", "10 ms", "10 ms", "unclear", ""]
    assert "no speed-up measured" in text
    clear = LatencyComparison(same, Latency(0.005, 0.005, 0.005, 30), speedup=2, low=1.9, high=2.1)
    assert cells(render(replace(summary, latency=clear)), "latency")[3] == "50.0%"


def test_a_measured_target_stands_beside_what_was_measured(summary):
    asked = {"latency": 0.7, "memory": 0.6}
    text = render(replace(summary, asked=asked, measured={"memory": 0.55}))
    assert cells(text, "peak memory") == ["peak memory", "", "", "55.0%", "60.0%"]
    assert "TARGET NOT MET" in text
    assert "latency 70.0% (not measured), memory 60.0%" in " ".join(text.split())


def test_sizes_and_the_batch_size_stand_beside_what_was_measured(summary):
    same = Latency(0.010, 0.009, 0.011, 30)
    environment = {
        "batch_size": 16,
        "state_dict_bytes": {"dense": 44_700_000, "pruned": 22_350_000},
        "peak_bytes": {"dense": 2_000, "pruned": 500},
    }
    latency = LatencyComparison(same, same, speedup=1.0, low=0.9, high=1.1)
    text = render(replace(summary, environment=environment, latency=latency))
    assert cells(text, "file size") == ["file size", "44.7 MB", "22.35 MB", "50.0%", ""]
    assert cells(text, "peak memory") == ["peak memory", "2 kB", "500 B", "25.0%", ""]
    assert "Latency at batch size 16: no speed-up measured" in " ".join(text.split())


def test_a_memory_target_stands_beside_the_fraction_that_it_is_judged_by(summary):
    environment = {"peak_bytes": {"dense": 2_000, "pruned": 500}}
    text = render(replace(summary, asked={"memory": 0.6}, measured={"memory": 0.55}, environment=environment))
    assert cells(text, "peak memory") == ["peak memory", "2 kB", "500 B", "55.0%", "60.0%"]


def test_what_was_asked_and_never_measured_is_unknown(summary):
    text = render(replace(summary, asked={"latency": 0.7, "memory": 0.6}))
    assert cells(text, "latency") == ["latency", "", "", "unknown", "70.0%"]
    assert cells(text, "peak memory") == ["peak memory", "", "", "unknown", "60.0%"]


def test_every_line_fits_eighty_columns_and_is_ascii(summary):
    many = replace(
        summary,
        layers=tuple(LayerChange(f"{LONG}{i}", 10**5, 10**4) for i in range(40)),
        flops=Change(3.2e12, 1.6e12),
        metrics={LONG: Change(0.123456789, 1e-9)},
        frozen={"a": "because " * 40},
    )
    text = render(many)
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 80
    assert "3.2 T" in text


def test_names_with_brackets_are_shown_as_they_are(summary):
    layers = (LayerChange("blocks[0].conv", 8, 4),)
    text = render(replace(summary, layers=layers, metrics={"acc[top1]": Change(1, 1)}))
    assert "blocks[0].conv" in text
    assert "acc[top1]" in text


def test_a_terminal_gets_the_same_numbers(summary):
    console = Console(file=StringIO(), width=80, force_terminal=True, color_system=None)
    console.print(summary_tables(summary))
    text = console.file.getvalue()
    for part in ("first", "25%", "FLOPs", "50.0%", "Target met", "reaches the output [logits]"):
        assert part in text
