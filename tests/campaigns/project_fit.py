"""One project of other people with the callback added to its Trainer and nothing else changed: what became of it."""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from campaigns.measuring import carried, parts
from lightning_taylor import TaylorPruning, load_pruned
from lightning_taylor.errors import PruningError
from lightning_taylor.fit import callback as callback_module
from lightning_taylor.utilities.calls import tensors_in

EPOCHS, BATCHES = 3, 5
RESULTS = ("reaches the output", "reaches the loss")


class Batches:
    """Made batches in a fixed order, always the same."""

    def __init__(self, make: Callable[[torch.Generator], Any], count: int = BATCHES, seed: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.data = [make(generator) for _ in range(count)]

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Any:
        return iter(self.data)


class Randomness(L.Callback):
    """What is random travels with the checkpoint, so that a project with dropout or noise can be bit-equal at all."""

    def __init__(self) -> None:
        self.loaded: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"random": torch.get_rng_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.loaded = state_dict["random"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.loaded is not None:
            torch.set_rng_state(self.loaded)


@dataclass(frozen=True)
class Project:
    """What its user would have written.

    Attributes:
        package: the distribution whose version counts; empty for Lightning's own.
        module: makes the LightningModule.
        batch: makes one batch of random data.
        target: of the pruning.
        options: further arguments of the callback; what a user has to know.
        know: the same in words.
        callbacks: the project's own.
        trainer: arguments of its Trainer.
        given: what its constructor takes, where its checkpoint does not say so; for ``load_pruned``.
        datamodule: whether it asks its Trainer for the data.
        old_name: whether it is a module of ``pytorch_lightning``.
        around: a context in which all of it runs, such as one without downloads.
    """

    package: str
    module: Callable[[], L.LightningModule]
    batch: Callable[[torch.Generator], Any]
    target: float = 0.6
    options: Mapping[str, Any] = field(default_factory=dict)
    know: str = ""
    callbacks: Callable[[], list[L.Callback]] = list
    trainer: Mapping[str, Any] = field(default_factory=dict)
    given: Callable[[], Mapping[str, Any]] = dict
    datamodule: bool = False
    old_name: bool = False
    around: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass
class Row:
    """What became of a project.

    Attributes:
        model: the project's name.
        version: of its package.
        status: "landed", "refused" before the first step, "crashed", "timeout", or "short" of its target.
        note: the refusal, or what went wrong.
        know: what the user has to know.
        removable: share of the channels of its layers that can go, those of its outputs left out.
        achieved: share of the FLOPs that is left.
        trace_seconds: of one processor core.
        after: "yes" if it forwards and takes another step without the callback, else what happened.
        validated: the same for ``Trainer.validate``; "-" where it has no validation.
        resumed: "bit-equal" from the checkpoints of the first and of the second epoch; "as its own" if it is not
            bit-equal without the callback either.
        loaded: whether ``load_pruned`` gives the same weights.
        seconds: by the clock, of the whole row.
    """

    model: str
    version: str = ""
    status: str = "crashed"
    note: str = ""
    know: str = ""
    removable: float = 0.0
    achieved: float = 1.0
    trace_seconds: float = 0.0
    after: str = "-"
    validated: str = "-"
    resumed: str = "-"
    loaded: str = "-"
    seconds: float = 0.0


def measure(name: str, project: Project, folder: Path, version: str) -> dict[str, Any]:
    """The row of one project, as plain types; what goes wrong is written into it and not raised."""
    row, began = Row(name, version, know=project.know), time.monotonic()
    warnings.simplefilter("ignore")
    with project.around():
        try:
            _fill(row, project, folder)
        except PruningError as error:
            row.status, row.note = "refused", f"{type(error).__name__}: {error}"
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            row.note = f"{type(error).__name__} ({Path(where.filename).name}:{where.lineno}): {error}"
    row.seconds = round(time.monotonic() - began, 1)
    return asdict(row)


def _fill(row: Row, project: Project, folder: Path) -> None:
    with _timed() as seconds:
        _, module, pruning = fit(project, folder / "whole")
    row.trace_seconds = round(sum(seconds), 1)
    row.removable, row.achieved = _removable(pruning), pruning.remaining.get("flops", 1.0)
    row.status = "landed" if pruning.reached else "short"
    final = _state(module)
    checkpoints = [folder / "whole" / f"epoch={n}.ckpt" for n in range(EPOCHS)]
    row.loaded = _said(lambda: _loads(project, module, checkpoints[-1], final))
    row.resumed = _said(lambda: _resumes(project, folder, checkpoints, final))
    if _validates(module):
        row.validated = _said(lambda: _validate(project, folder, module))
    row.after = _said(lambda: _one_more(project, folder, module))


def fit(
    project: Project, folder: Path, ckpt: Path | None = None, *, pruned: bool = True
) -> tuple[L.Trainer, L.LightningModule, TaylorPruning]:
    """One fit, from the beginning or from a checkpoint."""
    torch.manual_seed(0)
    name = _names(project)
    pruning = name.TaylorPruning(target=project.target, **{"measure_latency": False, **project.options})
    keep = name.ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    module = project.module()
    trainer = _trainer(project, folder, [*([pruning] if pruned else []), Randomness(), keep], max_epochs=EPOCHS)
    trainer.fit(module, **_data(project, module), ckpt_path=ckpt, weights_only=False)
    return trainer, module, pruning


class Data(L.LightningDataModule):
    """The same batches, for modules that ask their Trainer for them."""

    train_batch_size = 1

    def __init__(self, project: Project) -> None:
        super().__init__()
        self.project = project

    def train_dataloader(self) -> Batches:
        return Batches(self.project.batch)

    def val_dataloader(self) -> Batches:
        return Batches(self.project.batch, 1, seed=2)


def _data(project: Project, module: L.LightningModule) -> dict[str, Any]:
    if project.datamodule:
        return {"datamodule": Data(project)}
    validation = Batches(project.batch, 1, seed=2) if _validates(module) else None
    return {"train_dataloaders": Batches(project.batch), "val_dataloaders": validation}


def _trainer(project: Project, folder: Path, callbacks: list[L.Callback], **kwargs: Any) -> L.Trainer:
    settings = {
        "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
        "num_sanity_val_steps": 0, "default_root_dir": folder,
        "log_every_n_steps": 1, "enable_checkpointing": bool(callbacks),
        **project.trainer, **kwargs,
    }  # fmt: skip
    return _names(project).Trainer(callbacks=[*project.callbacks(), *callbacks], **settings)


def _names(project: Project) -> Any:
    """The Trainer, its checkpoints and the pruning under the name of Lightning that the project uses."""
    if not project.old_name:
        return SimpleNamespace(Trainer=L.Trainer, ModelCheckpoint=ModelCheckpoint, TaylorPruning=TaylorPruning)
    import pytorch_lightning as pl

    from lightning_taylor.pl import TaylorPruning as Old

    return SimpleNamespace(Trainer=pl.Trainer, ModelCheckpoint=pl.callbacks.ModelCheckpoint, TaylorPruning=Old)


@contextmanager
def _timed() -> Any:
    seconds: list[float] = []
    trace = callback_module.trace_step

    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.process_time()
        try:
            return trace(*args, **kwargs)
        finally:
            seconds.append(time.process_time() - began)

    with mock.patch.object(callback_module, "trace_step", timed):
        yield seconds


def _removable(pruning: TaylorPruning) -> float:
    graph = pruning.graph
    assert graph is not None
    free, all_of_them, removable = carried(graph), 0, 0
    for layer, axis in graph.layers.items():
        width = graph.width(axis)
        kept = sum(n for n, reason in parts(graph.frozen.get(layer, ""), width) if reason in RESULTS)
        all_of_them, removable = all_of_them + width - kept, removable + len(free[layer])
    return removable / max(1, all_of_them)


def _state(module: L.LightningModule) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def _same(ones: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> str:
    if ones.keys() != others.keys():
        return f"other names: {sorted(ones.keys() ^ others.keys())[:3]}"
    wrong = [n for n in ones if ones[n].shape != others[n].shape or not ones[n].equal(others[n])]
    wrong = [n for n in wrong if not bool(ones[n].isnan().any()) or ones[n].shape != others[n].shape]
    return f"{len(wrong)} tensors differ, such as {wrong[0]}" if wrong else ""


def _loads(project: Project, module: L.LightningModule, checkpoint: Path, final: Mapping[str, Tensor]) -> str:
    loaded = load_pruned(type(module), checkpoint, weights_only=False, **project.given())
    return _same(_state(loaded), final) or "yes"


def _resumes(project: Project, folder: Path, checkpoints: list[Path], final: Mapping[str, Tensor]) -> str:
    """Go on from the end of the first and of the second epoch."""
    wrong = {}
    for number, checkpoint in enumerate(checkpoints[:-1]):
        _, module, _ = fit(project, folder / f"from{number}", checkpoint)
        if said := _same(_state(module), final):
            wrong[number] = said
    if not wrong:
        return "bit-equal"
    _, module, _ = fit(project, folder / "own", pruned=False)
    _, again, _ = fit(project, folder / "own again", folder / "own" / f"epoch={min(wrong)}.ckpt", pruned=False)
    return "as its own" if _same(_state(module), _state(again)) else f"from epoch {wrong}"


def _validate(project: Project, folder: Path, module: L.LightningModule) -> None:
    data = {"datamodule": Data(project)} if project.datamodule else {"dataloaders": Batches(project.batch, 1, seed=2)}
    _trainer(project, folder, []).validate(module, verbose=False, **data)


def _one_more(project: Project, folder: Path, module: L.LightningModule) -> str:
    """Another step of a Trainer without the callback; its state is finite."""
    trainer = _trainer(project, folder / "more", [], max_steps=1)
    trainer.fit(module, **_data(project, module))
    # Detached: what a validation writes are tensors of inference, of which torch computes none with a gradient.
    finite = all(bool(t.detach().isfinite().all()) for t in tensors_in(list(module.parameters())))
    return "yes" if finite else "not finite"


def _validates(module: L.LightningModule) -> bool:
    return not type(module).validation_step.__module__.startswith(("lightning.", "pytorch_lightning."))


def _said(work: Callable[[], Any]) -> str:
    try:
        said = work()
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} ({Path(where.filename).name}:{where.lineno}): {error}"
    return said if isinstance(said, str) else "yes"
