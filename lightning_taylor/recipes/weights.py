"""Pretrained weights: torchvision's by the name of the enum, or a state dict in a file."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError

import torch
import torchvision
from torch import Tensor, nn

from lightning_taylor.recipes.models import PLAIN, check_name, create_model, find_head, replace_head

__all__ = ["load_weights", "pretrained_model", "read_state_dict"]

AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")
"""Auxiliary heads in the files of Inception and GoogLeNet, which the recipes build without."""


def pretrained_model(name: str, weights: str) -> nn.Module:
    """A network with pretrained weights and the head they came with.

    Args:
        name: as for ``create_model``.
        weights: the name of a torchvision weights enum (``"IMAGENET1K_V1"``, ``"DEFAULT"``: downloaded once), or the
            path of a state-dict file. Of GoogLeNet and Inception take the enum: it also sets their
            ``transform_input``, which a file cannot.

    Raises:
        ValueError: for an unknown model, or a file that holds another one's weights.
        FileNotFoundError: if ``weights`` is neither; the message lists the enums.
    """
    if weights in (enums := _enum_names(name)):
        auxiliary = {"aux_logits": False} if name in PLAIN else {}
        return torchvision.models.get_model(name, weights=weights, **auxiliary)
    if not Path(weights).is_file():
        have = f"torchvision has {', '.join(enums)} for {name}" if enums else f"torchvision has none for {name}"
        raise FileNotFoundError(f"weights={weights!r}: no such file, and no such weights enum ({have})")
    state = read_state_dict(weights)
    try:
        return load_weights(name, state)
    except ValueError as error:
        raise ValueError(f"{weights}: {error}") from error


def load_weights(name: str, state: dict[str, Tensor]) -> nn.Module:
    """The named network with as many classes as the state dict has, and its values.

    Raises:
        ValueError: if the state dict belongs to another model; the message says what differs.
    """
    model = create_model(name, num_classes=1)
    head = find_head(model)[0]
    if f"{head}.weight" not in state:
        raise ValueError(f"these weights are not {name}'s: no {head}.weight among {', '.join(list(state)[:4])}, ...")
    replace_head(model, len(state[f"{head}.weight"]))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"these weights are not {name}'s: {_differences(model.state_dict(), state)}") from error
    return model


def _differences(expected: dict[str, Tensor], found: dict[str, Tensor]) -> str:
    """A few words on each kind of difference; torch's own message has a line for every tensor."""
    both = [key for key in expected if key in found]
    kinds = {
        "missing": [key for key in expected if key not in found],
        "unknown": [key for key in found if key not in expected],
        "of another shape": [key for key in both if expected[key].shape != found[key].shape],
    }
    return ", ".join(
        f"{len(keys)} tensors {kind} ({', '.join(keys[:2])}{', ...' if len(keys) > 2 else ''})"
        for kind, keys in kinds.items()
        if keys
    )


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """A state dict from a file of plain tensors, in the form that ``load_state_dict`` wants.

    Half precision becomes float32; an enclosing ``state_dict`` entry and a ``module.`` prefix are taken off, and
    auxiliary heads left out.

    Args:
        path: written by ``torch.save``; read with ``weights_only=True``.

    Raises:
        ValueError: if the file holds anything but named tensors.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise ValueError(f"{path} is no file of tensors as torch.save writes them: {reason}") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict: expected names with tensors, got {type(state).__name__}")
    named = {key.removeprefix("module."): value for key, value in state.items()}
    return {
        key: value.float() if value.is_floating_point() else value
        for key, value in named.items()
        if not key.startswith(AUXILIARY)
    }


def _enum_names(name: str) -> list[str]:
    """What torchvision offers for a model, ``DEFAULT`` first."""
    if check_name(name) not in torchvision.models.list_models(module=torchvision.models):
        return []
    return ["DEFAULT", *(member.name for member in torchvision.models.get_model_weights(name))]
