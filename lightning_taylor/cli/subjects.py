"""What ``lightning-taylor inspect`` looks at: a model of torchvision, a configuration, or a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NoReturn

import torch
import torchvision
from torch import nn

from lightning_taylor.checkpoint.widths import STATE_KEY
from lightning_taylor.cli.checkpoints import read_checkpoint
from lightning_taylor.cli.configs import shipped_configs
from lightning_taylor.cli.dry_fit import look
from lightning_taylor.cli.failure import fail
from lightning_taylor.cli.messages import nearest
from lightning_taylor.graph.serialize import graph_from_plain
from lightning_taylor.plan.record import Record
from lightning_taylor.plan.schedule import default_schedule
from lightning_taylor.plan.target import Target
from lightning_taylor.recipes.models import create_model, model_names
from lightning_taylor.report.inspection import Inspection, inspect_model
from lightning_taylor.trace.options import AttentionHeads, Choices, ConvGroups

__all__ = ["Request", "of_checkpoint", "of_config", "of_name"]

FRAMES = 16
"""Of a video, at a rate at which the video models of torchvision were trained."""


@dataclass(frozen=True)
class Request:
    """What the command line asks for; None is left to the configuration, or to the defaults of ``TaylorPruning``."""

    target: Target | None = None
    steps: int | None = None
    ignore: tuple[str, ...] | None = None
    min_channels: int | None = None
    round_to: int | None = None
    allow_inexact_norms: bool | None = None
    conv_groups: ConvGroups | None = None
    attention_heads: AttentionHeads | None = None


def of_name(name: str, request: Request, shape: Sequence[int] | None) -> Inspection:
    """A model of torchvision, or the one for the digits, with random weights."""
    inputs = torch.rand(*(shape or _usual_shape(name)), generator=torch.Generator().manual_seed(0))
    given = {key: value for key, value in vars(request).items() if value is not None}
    return inspect_model(_model(name), inputs, **given)


def of_checkpoint(path: str, *, trust: bool) -> Inspection:
    """What a checkpoint remembers of its pruning; its model's class is not needed."""
    state = read_checkpoint(path, trust=trust).get("callbacks", {}).get(STATE_KEY)
    if state is None:
        fail(2, f"{path} holds no state of TaylorPruning: it was saved without the callback, or its weights alone")
    try:
        if state["graph"] is None:
            fail(2, f"{path} was saved before the first training batch, when TaylorPruning knew no channels yet")
        return Inspection.after(graph_from_plain(state["graph"]), Record.from_plain(state["record"]))
    except (KeyError, TypeError, AttributeError) as error:
        fail(2, f"what {path} says about its pruning cannot be read ({type(error).__name__}: {error})")


def of_config(args: list[str], request: Request) -> Inspection:
    """The model, data and callback of a configuration, up to the first training batch of its fit.

    Args:
        args: a command line of ``lightning-taylor fit``.
        request: what overrides the settings of the callback.

    Raises:
        ValueError: if the fit is too short for its schedule, or of unknown length and has none.
    """
    chosen = {f.name: value for f in fields(Choices) if (value := getattr(request, f.name)) is not None}
    looked = look(args, request.ignore, chosen)
    pruner, options = looked.pruner, looked.pruner.options
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    steps = request.steps or (int(looked.steps) if looked.steps != float("inf") else None)
    return Inspection.of(
        looked.graph,
        request.target or options.target,
        pruner.schedule or default_schedule(float("inf") if steps is None else steps),
        steps,
        min_channels=request.min_channels or options.min_channels,
        round_to=request.round_to or options.on(device).multiple,
    )


def _model(name: str) -> nn.Module:
    if name in model_names():
        return create_model(name, num_classes=10 if name == "digits_cnn" else 1000)
    builder = torchvision.models.get_model_builder(name)
    # A segmentation or detection net would fetch weights for its backbone.
    backbone = {"weights_backbone": None} if "weights_backbone" in builder.__annotations__ else {}
    return torchvision.models.get_model(name, weights=None, **backbone)


def _usual_shape(name: str) -> list[int]:
    """One example as the model's published weights are evaluated on, without fetching them."""
    if name == "digits_cnn":
        return [1, 1, 8, 8]
    if name not in torchvision.models.list_models():
        _unknown(name)
    presets: Any = next(iter(torchvision.models.get_model_weights(name))).transforms
    preset = presets()
    side = getattr(preset, "crop_size", None) or getattr(preset, "resize_size", None) or [224]
    side = list(side) * (2 if len(side) == 1 else 1)
    return [1, 3, *([FRAMES] if "video" in type(preset).__name__.lower() else []), *side]


def _unknown(name: str) -> NoReturn:
    if name in shipped_configs() or name.endswith((".yaml", ".yml")):
        fail(2, f"{name} is a configuration: write --config {name}")
    if name.endswith((".ckpt", ".pt", ".pth")) or "/" in name:
        fail(2, f"no file {name!r}")
    known = ["digits_cnn", *torchvision.models.list_models()]
    fail(2, f"no model of torchvision is called {name!r}{nearest(name, known)}")
