"""The fit that the kill campaign kills: its configurations, and what must hold afterwards."""

from __future__ import annotations

import copy
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
import zoo
from fit.boring import trainer
from fit.resuming import BATCHES, EPOCHS, Keep, Module
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn

from campaigns.killed_kinds import CONFIGS
from campaigns.strikes import Strike, StruckError, UsersError, counting_lines
from lightning_taylor import TaylorPruning
from lightning_taylor.modules.attributes import attribute_changes
from lightning_taylor.report.state import read_state
from lightning_taylor.surgery.wrapped_optimizers import unwrapped

PARTS = (
    "fit/callback",
    "fit/session",
    "fit/pruner",
    "fit/guard",
    "fit/distributed",
    "fit/trainer_state",
    "fit/training_step",
    "checkpoint",
    "surgery",
    "scores",
    "criteria",
    "plan",
    "report",
    "graph",
    "trace/recorder",
)

MOST_STEPS = BATCHES * EPOCHS


def build(config: str) -> L.LightningModule:
    """A fresh, unpruned module."""
    settings = CONFIGS[config]
    if "build" in settings:
        return settings["build"]()
    kind: Callable[..., Any] = settings.get("module", Module)
    return kind(settings.get("net", zoo.Residual)(), settings.get("optimizer", "AdamW"))


def run(folder: Path, config: str, *, resume: Path | None = None, strike: Strike | None = None) -> dict[str, Any]:
    """One fit, perhaps struck, and what was found wrong with what it left in memory."""
    torch.manual_seed(0)
    settings = CONFIGS[config]
    pruner, module = settings["pruner"](), build(config)
    steps = 2 if config == "accumulated" else 3
    saver = ModelCheckpoint(
        folder / "checkpoints", "step{step}", every_n_train_steps=steps, save_top_k=-1, save_last=True
    )
    others = settings["others"]() if "others" in settings else []
    if settings.get("exception"):
        others.append(OnExceptionCheckpoint(folder / "checkpoints", "exception"))
    strike = strike or Strike("", "")
    with strike.armed(module, pruner) as striking:
        fitter = trainer(
            [*striking, *others, pruner, saver, Keep(folder)],
            max_epochs=EPOCHS,
            enable_checkpointing=True,
            default_root_dir=folder,
            num_sanity_val_steps=0,
            **settings.get("trainer", {}),
        )
        before = hooks(module)
        status = _fit(fitter, module, resume)
    faults = [] if status in ("finished", "ended") else [f"internal traceback: {status}"]
    faults += ["left behind: hooks"] * (hooks(module) > before)
    faults += [f"wrong shapes: {text}" for text in disagreements(module, pruner, fitter.optimizers)]
    return {"status": status, "reached": pruner.reached, "faults": faults}


def _fit(fitter: L.Trainer, module: L.LightningModule, resume: Path | None) -> str:
    """How a fit ended: "finished", "ended" by what was meant to end it, or a traceback."""
    try:
        fitter.fit(module, ckpt_path=resume, weights_only=True)
    except (StruckError, UsersError, SIGTERMException, SystemExit, KeyboardInterrupt):
        return "ended"
    except OSError as error:
        return "ended" if error.errno == 28 else traceback.format_exc()
    except AttributeError as error:
        # Lightning's own: averaging that is resumed after its last step ends like this, with or without pruning.
        swa = "StochasticWeightAveraging" in str(error) and fitter.global_step >= MOST_STEPS
        return "finished" if swa else traceback.format_exc()
    except BaseException:
        return traceback.format_exc()
    return "finished"


def calibrate(folder: Path, config: str) -> dict[str, Any]:
    """Run an undisturbed fit, for comparison, and count the lines of each part of the package that it runs."""
    lines: Counter[str] = Counter()
    with counting_lines(lines):
        result = run(folder, config)
    return {**result, "lines": dict(lines)}


def hooks(module: nn.Module) -> int:
    """How many hooks of any kind there are."""
    kinds = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
        "_load_state_dict_pre_hooks",
        "_state_dict_hooks",
    )
    return sum(len(getattr(m, kind)) for m in module.modules() for kind in kinds)


def disagreements(module: nn.Module, pruner: TaylorPruning, optimizers: Any) -> list[str]:
    """Where the model, its attributes, its optimizers and the pruner's graph do not say the same."""
    found = [f"{type(m).__name__}.{n}" for m in module.modules() for n in attribute_changes(m, {}, {})]
    if pruner.graph is not None:
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        found += [n for n, shape in pruner.graph.shapes.items() if tuple(tensors[n].shape) != shape]
    for p, state in (item for optimizer in unwrapped(optimizers) for item in optimizer.state.items()):
        found += [k for k, v in state.items() if isinstance(v, Tensor) and v.ndim and v.shape != p.shape]
    for name in ("net", "slow", "average"):
        try:
            copy.deepcopy(getattr(module, name, nn.Identity())).eval()(torch.randn(2, 3, 12, 12))
        except Exception as error:
            found.append(f"forward of {name}: {error}")
    return found


def check_checkpoint(checkpoint: dict[str, Any], config: str) -> list[str]:
    """Where the shapes in a checkpoint do not agree with each other."""
    state, module = checkpoint["state_dict"], build(config)
    own = read_state(checkpoint["callbacks"]["TaylorPruning"])
    found = []
    if own.pruned is not None:
        graph, record = own.pruned
        found += [n for n, shape in graph.shapes.items() if state[n].shape != shape]
        removed = sum(len(rows) for event in record.events for rows in event.removed.values())
        if sum(graph.dense_sizes.values()) - removed != sum(group.size for group in graph.groups.values()):
            found.append("the record and the graph disagree")
    names = {id(p): name for name, p in module.named_parameters()}
    made: Any = module.configure_optimizers()
    for optimizer, saved in zip(
        made[0] if isinstance(made, tuple) else made, checkpoint["optimizer_states"], strict=True
    ):
        order = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
        for position, values in saved["state"].items():
            shape, every = state[order[position]].shape, {**values, **values.get("outer", {})}
            tensors = {k: v for k, v in every.items() if isinstance(v, Tensor) and v.ndim}
            found += [f"{k} of {order[position]}" for k, v in tensors.items() if v.shape != shape]
    return [f"wrong shapes: in a checkpoint: {text}" for text in found]
