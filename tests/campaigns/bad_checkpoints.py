"""Checkpoints that are damaged, from elsewhere, or of another version."""

# ruff: noqa: E501  (one case a line reads better)
from __future__ import annotations

import atexit
import contextlib
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
import zoo
from fit.boring import Boring, loader, trainer
from fit.resuming import KillAfter, KilledError
from torch import nn

from campaigns.cases import Case
from lightning_taylor import Gradual, OneShot, Random, TaylorBatch, TaylorPruning
from lightning_taylor.checkpoint.load import load_pruned

Change = Callable[[dict[str, Any]], Any]
_made: dict[str, Path] = {}


class Zoo(Boring):
    """Builds its net by name, so that ``load_from_checkpoint`` can."""

    def __init__(self, name: str = "residual") -> None:
        super().__init__(zoo.NETS[name][0]())
        self.save_hyperparameters()


def pruner(**kwargs: Any) -> TaylorPruning:
    return TaylorPruning(**{"target": 0.5, "schedule": Gradual(2, 1, 20), "measure_latency": False, **kwargs})


def pruned_checkpoint(name: str = "residual") -> Path:
    """A checkpoint in the middle of a pruning; made once."""
    if name not in _made:
        folder = Path(tempfile.mkdtemp(prefix="bad-checkpoints-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        run = trainer(
            [pruner(), KillAfter(9, folder / "pruned.ckpt")],
            default_root_dir=folder,
            max_epochs=4,
            enable_checkpointing=True,
        )
        with contextlib.suppress(KilledError):
            run.fit(Zoo(name), loader())
        weights = torch.load(folder / "pruned.ckpt", weights_only=True)
        torch.save(
            {
                "state_dict": weights["state_dict"],
                "hyper_parameters": {"name": name},
                "pytorch-lightning_version": L.__version__,
            },
            folder / "weights.ckpt",
        )
        _made[name] = folder / "pruned.ckpt"
    return _made[name]


def changed(change: Change) -> Path:
    """The checkpoint with something changed in it."""
    checkpoint = torch.load(pruned_checkpoint(), weights_only=True)
    change(checkpoint)
    path = pruned_checkpoint().with_name("changed.ckpt")
    torch.save(checkpoint, path)
    return path


def cut(fraction: float) -> Path:
    data = pruned_checkpoint().read_bytes()
    path = pruned_checkpoint().with_name("cut.ckpt")
    path.write_bytes(data[: int(len(data) * fraction)])
    return path


def resume(path: Callable[[], Path], **kwargs: Any) -> Callable[[Any], Any]:
    def act(module: L.LightningModule) -> None:
        with tempfile.TemporaryDirectory() as folder:
            run = trainer([pruner(**kwargs)], default_root_dir=folder, max_epochs=4)
            run.fit(module, loader(), ckpt_path=path(), weights_only=True)

    return act


def state(checkpoint: dict[str, Any]) -> dict[str, Any]:
    return checkpoint["callbacks"]["TaylorPruning"]


def without(key: str) -> Change:
    return lambda checkpoint: state(checkpoint).pop(key)


def put(key: str, value: Any) -> Change:
    return lambda checkpoint: state(checkpoint).__setitem__(key, value)


def _wider(checkpoint: dict[str, Any]) -> None:
    weights = checkpoint["state_dict"]
    weights["net.head.weight"] = torch.zeros(7, weights["net.head.weight"].shape[1])


def _too_wide(checkpoint: dict[str, Any]) -> None:
    weights = checkpoint["state_dict"]
    weights["net.stem.0.weight"] = torch.zeros(99, 3, 3, 3)


def _other_graph(checkpoint: dict[str, Any]) -> None:
    state(checkpoint)["graph"]["shapes"]["net.stem.0.weight"] = [77, 3, 3, 3]


def _no_metadata(checkpoint: dict[str, Any]) -> None:
    checkpoint["state_dict"] = dict(checkpoint["state_dict"])


def _nothing_known(checkpoint: dict[str, Any]) -> None:
    _no_metadata(checkpoint)
    checkpoint["callbacks"].pop("TaylorPruning")


UNREADABLE = (RuntimeError, EOFError, pickle.UnpicklingError, OSError)
KEYS = ("graph", "record", "scores", "criterion", "step", "length", "pending", "report")
BROKEN: list[tuple[str, Any]] = [
    ("graph", {}), ("graph", "none"), ("graph", {"groups": []}), ("record", None), ("record", {"events": 1}),
    ("record", {"events": [{}]}), ("record", {"version": 9, "events": []}), ("report", None),
    ("report", {}), ("record", [1, 2]),
]  # fmt: skip
VERSIONS = [0, 3, 99, None, "1", -1]
CHANGES: list[tuple[str, Change, str | None]] = [
    ("another head", _wider, r"belongs to another Zoo: net.head.weight has shape \(5, 12\) here and \(7, .* before any pruning"),
    ("wider than the dense", _too_wide, r"net.stem.0.weight has shape \(8, 3, 3, 3\) here and \(99"),
    ("a graph of other widths", _other_graph, "net.stem.0.weight.*has shape"),
    ("a rebuilt state dict", _no_metadata, None),
    ("no state of ours, no metadata", _nothing_known, "size mismatch for net.stem.0.weight|checkpoint"),
    ("no state of ours", lambda c: c["callbacks"].pop("TaylorPruning"), None),
    ("no guard, and none wanted", without("guard"), None),
    ("half a metadata", lambda c: c["state_dict"]._metadata[""].__setitem__("lightning_taylor", {"dense": {}}), "damaged|cannot be read|widths"),
    ("gone: a weight", lambda c: c["state_dict"].pop("net.head.weight"), "net.head.weight"),
    ("gone: the optimizer", lambda c: c.pop("optimizer_states"), "optimizer_states|optimizer"),
]  # fmt: skip


def _resumes() -> Iterator[tuple[str, Callable[[Any], Any], str | None]]:
    yield "as it is", resume(pruned_checkpoint), None
    yield "another criterion", resume(pruned_checkpoint, criterion=TaylorBatch()), None
    yield "a criterion without scores", resume(pruned_checkpoint, criterion=Random()), None
    yield "another target", resume(pruned_checkpoint, target=0.4), None
    yield "another schedule", resume(pruned_checkpoint, schedule=OneShot(20)), None
    yield "no such file", resume(lambda: Path("/nowhere/x.ckpt")), "nowhere"
    yield "a folder", resume(lambda: Path(tempfile.gettempdir())), "."
    yield "an empty file", resume(lambda: cut(0.0)), ""
    yield "weights only", resume(lambda: pruned_checkpoint().with_name("weights.ckpt")), "."
    for fraction in (0.1, 0.5, 0.99):
        yield f"cut at {fraction:.0%}", resume(lambda f=fraction: cut(f)), "."
    for key in KEYS:
        yield f"without {key}", resume(lambda k=key: changed(without(k))), f"cannot be read.*{key}.*load_pruned"
    for key, value in BROKEN:
        yield (
            f"{key}={value!r}",
            resume(lambda k=key, v=value: changed(put(k, v))),
            "cannot be read.*another checkpoint",
        )
    for version in VERSIONS:
        says = f"version {version!r}, this release reads 2: resume with the release"
        yield f"version {version!r}", resume(lambda v=version: changed(put("version", v))), says
    for name, change, says in CHANGES:
        yield name, resume(lambda c=change: changed(c)), says


def _cases() -> Iterator[Case]:
    for name, act, says in _resumes():
        also = (*UNREADABLE, KeyError)
        # Lightning has copied the weights by the time it shows a callback its state.
        yield Case(f"resume: {name}", act, says, Zoo, also=also, changes=True)
    for other in ("concat", "vgg"):
        act = resume(lambda o=other: pruned_checkpoint(o))
        yield Case(f"resume: of {other}", act, "net.stem.0.weight|another Zoo", Zoo, also=(RuntimeError,))
    yield from _loads()


def _loads() -> Iterator[Case]:
    def loading(cls: Any, path: Callable[[], Any], **kwargs: Any) -> Callable[[Any], Any]:
        return lambda _: load_pruned(cls, path(), **kwargs)

    yield Case("load_pruned", loading(Zoo, pruned_checkpoint), None)
    yield Case("load_pruned: weights only", loading(Zoo, lambda: pruned_checkpoint().with_name("weights.ckpt")), None)
    yield Case("load_pruned: a text path", loading(Zoo, lambda: str(pruned_checkpoint())), None)
    yield Case(
        "load_pruned: not a module", loading(dict, pruned_checkpoint), "load_pruned takes a LightningModule class"
    )
    yield Case(
        "load_pruned: a plain module",
        loading(nn.Module, pruned_checkpoint),
        "load_pruned takes a LightningModule class",
    )
    yield Case("load_pruned: an instance", lambda _: load_pruned(Zoo(), pruned_checkpoint()), "LightningModule class")  # type: ignore[type-var]
    yield Case("load_pruned: no such file", loading(Zoo, lambda: "/nowhere/x.ckpt"), "nowhere", also=UNREADABLE)
    yield Case("load_pruned: cut", loading(Zoo, lambda: cut(0.7)), ".", also=UNREADABLE)
    yield Case(
        "load_pruned: another net",
        loading(Zoo, pruned_checkpoint, name="concat"),
        "belongs to another Zoo",
        also=UNREADABLE,
    )
    yield Case("load_pruned: unknown argument", loading(Zoo, pruned_checkpoint, width=5), None)
    yield Case(
        "load_pruned: another head", loading(Zoo, lambda: changed(_wider)), "belongs to another Zoo: net.head.weight"
    )
    yield Case(
        "load_pruned: no metadata", loading(Zoo, lambda: changed(_nothing_known)), "size mismatch", also=UNREADABLE
    )
    yield Case("load_pruned: None", loading(Zoo, lambda: None), "torch.load", also=(AttributeError,))


CASES: list[Case] = list(_cases())
