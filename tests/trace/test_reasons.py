"""The table of reasons: every sentence is recognised again, and no file of the trace has sentences of its own."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

from lightning_taylor import trace_channels
from lightning_taylor.report.remedies import remedy_for
from lightning_taylor.trace import reasons
from lightning_taylor.trace.reasons import Why

FIELDS = {
    "original": "encoder",
    "layer": "conv2",
    "pattern": "stem.*",
    "error": "E: (8)",
    "name": "query",
    "groups": 4,
    "what": "regions",
    "difference": 0.25,
    "tied": 3,
}
FREEZES = {"freeze", "freeze_all", "freeze_layer", "freeze_axes", "freeze_unless", "freeze_labels_of", "cut"}


def sentence(why: Why) -> str:
    return why("conv2d in layer1.0, net.py:7", **FIELDS)


@pytest.mark.parametrize("why", Why)
def test_a_sentence_is_recognised_among_others(why: Why) -> None:
    text = f"2 of 8 channels: reads something; 6 of 8 channels: {sentence(why)}"
    assert [other for other in Why if other.is_said_in(text)] == [why]
    assert remedy_for(text) == why.remedy


def test_of_several_reasons_the_remedy_of_the_first_in_the_table_counts() -> None:
    assert remedy_for(f"1 of 2 channels: {sentence(Why.CUT)}; 1 of 2 channels: {sentence(Why.IGNORED)}") == (
        "leave the pattern out of `ignore`"
    )


def test_remedies_name_options_that_a_trace_has() -> None:
    options = set(inspect.signature(trace_channels).parameters)
    words = " ".join(why.remedy for why in Why).replace("=", " ").replace(",", " ").replace("`", " ").split()
    assert {word for word in words if "_" in word or word == "ignore"} == {
        "ignore", "allow_inexact_norms", "attention_heads",
    }  # fmt: skip
    assert {"ignore", "allow_inexact_norms", "attention_heads"} <= options


def test_no_file_of_the_trace_freezes_with_a_sentence_of_its_own() -> None:
    for path in Path(reasons.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in FREEZES:
                texts = [a for a in node.args if isinstance(a, ast.JoinedStr | ast.Constant)]
                assert not texts, f"{path.name}:{node.lineno}"
