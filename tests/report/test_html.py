from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import lightning as L
import pytest

from lightning_taylor import OneShot, TaylorPruning
from lightning_taylor.fit.report import FitReport
from lightning_taylor.measure.latency import Latency, LatencyComparison
from lightning_taylor.recipes.classifier import ImageClassifier
from lightning_taylor.recipes.digits import Digits
from lightning_taylor.report.html import page, write_page
from lightning_taylor.report.summary import Change, LayerChange, PruningSummary

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
IN_A_BROWSER = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on the PATH to open the page in")
VOID = {"meta", "link", "img", "br"}
NASTY = '</script><script>alert("1")</script>&amp;<!--'

# What the page cannot tell by itself is written into its body, where --dump-dom shows it.
PROBE = """<script>
window.addEventListener("load", () => {
  const found = {
    images: [...document.images].map(image => image.naturalWidth),
    data: JSON.parse(document.getElementById("pruning").textContent),
    text: document.body.innerText,
    width: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    requests: performance.getEntriesByType("resource").map(entry => entry.name.slice(0, 30)),
  };
  document.body.dataset.found = encodeURIComponent(JSON.stringify(found));
});
</script>"""


class Elements(HTMLParser):
    """Every element and all text; complains about a tag that closes nothing, or is never closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)

    def of(self, tag):
        return [attrs for name, attrs in self.found if name == tag]

    def words(self):
        """All text that a reader may see."""
        return " ".join(text for tag, texts in self.texts.items() for text in texts if tag not in ("script", "style"))


@pytest.fixture(scope="session")
def fitted(tmp_path_factory) -> tuple[PruningSummary, Path]:
    """The digits, really pruned, and the folder with what the fit wrote about it."""
    folder = tmp_path_factory.mktemp("fit")
    kept: list[PruningSummary] = []
    show: Callable[..., PruningSummary] = FitReport.show

    def keep(self: FitReport, *args, **kwargs) -> PruningSummary:
        kept.append(show(self, *args, **kwargs))
        return kept[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FitReport, "show", keep)
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        pruner = TaylorPruning(0.5, schedule=OneShot(10))
        trainer = L.Trainer(
            max_epochs=3, callbacks=[pruner], default_root_dir=folder, logger=False, accelerator="cpu",
            limit_train_batches=8, num_sanity_val_steps=0, **quiet,
        )  # fmt: skip
        trainer.fit(ImageClassifier("digits_cnn", lr=3e-3), Digits())
    (summary,) = kept
    return summary, folder


@pytest.fixture
def nasty(summary) -> PruningSummary:
    """Names and reasons that would break a page that did not escape them."""
    return replace(
        summary,
        layers=(LayerChange(NASTY, 8, 4),),
        frozen={NASTY: NASTY},
        unscored={NASTY: NASTY},
        metrics={NASTY: Change(0.5, 0.25)},
        widths=({NASTY: 4},),
        curve=({"step": 1, "flops": 80, NASTY: 0.5}, {"step": 9, "flops": 20, NASTY: 0.25}),
        scores={"first": {NASTY: (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)}},
        environment={"machine": NASTY},
    )


def opened(path: Path, folder: Path, *options: str) -> tuple[dict, list[str]]:
    """What a page looks like from inside of a browser without network, and what it says on the console."""
    copy = folder / "probed.html"
    copy.write_text(path.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>"), encoding="utf-8")
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--v=0", *options, "--dump-dom",
        copy.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    (found,) = re.findall(r'data-found="([^"]*)"', done.stdout)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(unquote(found)), console


def strings(value):
    """Every string in nested data, keys included."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, str):
        yield value


def embedded(html):
    (data,) = re.findall(r'<script type="application/json" id="pruning">(.*?)</script>', html, flags=re.DOTALL)
    return json.loads(data)


@pytest.mark.slow
def test_the_page_of_a_real_fit_holds_what_its_json_holds(fitted):
    summary, folder = fitted
    html = page(summary)
    elements = Elements(html)
    assert embedded(html) == json.loads((folder / "pruning.json").read_text()) == summary.to_plain()
    assert len(elements.of("img")) == 4
    words = elements.words()
    plain = summary.to_plain()
    told = {name: plain[name] for name in ("layers", "frozen", "unscored", "metrics", "environment", "widths")}
    for name in strings(list(told.values())):
        if name not in (*vars(summary.layers[0]), "dense", "pruned"):
            assert name.replace("_bytes", "").replace("_", " ") in words.replace("_", " ") or "bytes" in name, name
    assert f"{summary.flops.remaining:.1%}" in words
    assert "Target met after 1 event" in words
    assert "FLOPs count 2 per multiply-add, for one example." in words


@pytest.mark.slow
def test_the_page_says_how_to_go_on_with_its_checkpoint(summary):
    assert not Elements(page(summary)).of("pre")
    html = page(replace(summary, checkpoint="my logs/last.ckpt", model="nets.Net"))
    assert "lightning-taylor export 'my logs/last.ckpt' --format onnx --model nets.Net" in Elements(html).words()


def test_the_page_has_the_flops_and_parameters_of_each_layer(summary):
    cells = "".join(f"<td>{cell}</td>" for cell in (8, 2, "25%", 48, 12, 24, 6))
    assert f'<th scope="row">first</th>{cells}' in page(summary)


def test_the_fit_itself_writes_the_page(fitted):
    summary, folder = fitted
    assert (folder / "pruning.html").read_text(encoding="utf-8") == page(summary)


@IN_A_BROWSER
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_without_network_shows_all_of_a_real_fit(fitted, tmp_path, scheme):
    summary, folder = fitted
    look = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    found, console = opened(folder / "pruning.html", tmp_path, "--window-size=1000,900", *look)
    assert console == []
    assert len(found["images"]) == 4
    assert min(found["images"]) > 600
    assert found["data"] == summary.to_plain()
    assert "net.head" in found["text"]
    assert "reaches the output" in found["text"]
    assert [name for name in found["requests"] if not name.startswith("data:")] == []


@pytest.mark.slow
@IN_A_BROWSER
def test_nothing_sticks_out_on_a_narrow_screen(nasty, tmp_path):
    path = write_page(nasty, tmp_path / "pruning.html")
    found, console = opened(path, tmp_path, "--window-size=500,900")
    assert console == []
    assert found["width"] == 0


@pytest.mark.slow
@IN_A_BROWSER
def test_a_browser_runs_nothing_that_a_name_says(nasty, tmp_path):
    path = write_page(nasty, tmp_path / "pruning.html")
    found, console = opened(path, tmp_path)
    assert console == []
    assert found["data"] == nasty.to_plain()
    assert NASTY in found["text"]


@pytest.mark.slow
@IN_A_BROWSER
def test_the_browser_would_tell_of_a_broken_page(summary, tmp_path):
    broken = tmp_path / "broken.html"
    extra = '<img alt="" src="data:image/png;base64,AAAA"><img alt="" src="http://example.org/a.png">'
    extra += "<div style='width: 3000px'>wide</div><script>console.error('told')</script>"
    broken.write_text(page(summary).replace("</main>", extra + "</main>"), encoding="utf-8")
    found, console = opened(broken, tmp_path)
    assert any("told" in line for line in console)
    assert found["images"][-2:] == [0, 0]
    assert found["width"] > 0
    assert any(name.startswith("http:") for name in found["requests"])


@pytest.mark.parametrize("which", ["summary", "nasty", "empty"])
def test_every_tag_is_closed_and_nothing_is_fetched(summary, nasty, which):
    empty = PruningSummary({}, Change(0, 0), Change(0, 0), Change(0, 0), layers=())
    html = page({"summary": summary, "nasty": nasty, "empty": empty}[which])
    elements = Elements(html)
    assert html.startswith("<!doctype html>\n<html lang=")
    assert [attrs.get("type") for attrs in elements.of("script")] == ["application/json"]
    links = [a[key] for _, a in elements.found for key in ("src", "href", "srcset", "poster") if key in a]
    assert all(link.startswith("data:") for link in links)
    assert "@import" not in html
    assert "url(" not in html
    assert all(attrs["alt"] for attrs in elements.of("img"))
    assert len(elements.of("title")) == len(elements.of("h1")) == 1


@pytest.mark.slow
def test_numbers_in_doubt_are_listed_in_the_data_and_on_the_page(summary):
    doubt = "8: tensors of several kinds have as many channels"
    listed = page(replace(summary, doubtful={"encoder.feature_dim": doubt}))
    assert embedded(listed)["doubtful"] == {"encoder.feature_dim": doubt}
    assert "<summary>1 number in doubt</summary>" in listed
    assert f'<th scope="row">encoder.feature_dim</th><td>{doubt}</td>' in listed
    assert "in doubt" not in page(summary)


@pytest.mark.slow
def test_names_are_shown_as_they_are(nasty):
    html = page(nasty)
    assert NASTY in Elements(html).words()
    assert "<script>alert" not in html
    assert embedded(html) == nasty.to_plain()


@pytest.mark.slow
def test_the_same_summary_gives_the_same_page(nasty):
    assert page(nasty) == page(nasty)


def test_a_missed_target_is_not_to_be_overlooked(summary):
    elements = Elements(page(replace(summary, asked={"flops": 0.1, "latency": 0.5})))
    assert "TARGET NOT MET" in elements.words()
    assert [a["class"] for a in elements.of("p") if "verdict" in (a.get("class") or "")] == ["verdict missed"]


def test_what_was_measured_stands_beside_where(summary):
    times = [Latency(t, t, t, 30) for t in (0.01, 0.004)]
    measured = replace(
        summary,
        latency=LatencyComparison(*times, speedup=2.5, low=2.4, high=2.6),
        environment={
            "machine": "a computer",
            "versions": {"torch": "9.9"},
            "batch_size": 16,
            "state_dict_bytes": {"dense": 44_700_000, "pruned": 22_350_000},
            "peak_bytes": {"dense": 1_000, "pruned": 250},
        },
    )
    words = " ".join(Elements(page(measured)).words().split())
    for part in ("44.7 MB 22.35 MB 50.0%", "1 kB 250 B 25.0%", "10 ms 4 ms 40.0%", "a computer", "torch 9.9"):
        assert part in words
    assert "Latency at batch size 16: 2.50 times faster" in words


def test_a_long_history_shows_the_widths_after_some_events_and_the_last(summary):
    elements = Elements(page(replace(summary, widths=tuple({"first": 1000 - i} for i in range(105)))))
    widths = [int(text) for text in elements.texts["td"] if re.fullmatch(r"\d{3,4}", text) and int(text) > 800]
    assert len(widths) <= 20
    assert widths[-1] == 1000 - 104
    assert widths == sorted(widths, reverse=True)


def test_without_matplotlib_the_page_says_why_it_has_no_pictures(summary, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    elements = Elements(page(summary))
    assert elements.of("img") == []
    assert "No pictures:" in elements.words()
    assert "pip install 'lightning-taylor[plots]'" in elements.words()


@pytest.mark.slow
def test_a_failed_write_leaves_the_old_page_alone(summary, tmp_path):
    path = write_page(summary, tmp_path / "new" / "pruning.html")
    old = path.read_text()
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_page(replace(summary, environment={"machine": object()}), path)
    assert path.read_text() == old
    assert os.listdir(path.parent) == ["pruning.html"]
