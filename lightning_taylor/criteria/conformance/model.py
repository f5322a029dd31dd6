"""Rules about the model that is scored: the training goes on as if nobody looked, and nothing is left behind."""

from __future__ import annotations

import random
import sys
from typing import Any

import torch
from torch import nn

from lightning_taylor.criteria.conformance.bench import difference, loss_of, train
from lightning_taylor.criteria.conformance.rules import Case

__all__ = [
    "left_behind",
    "random_numbers",
    "same_training",
]


def same_training(case: Case) -> str | None:
    """Check that weights, gradients, statistics and modes are those of a model that nobody scores."""
    model, twin = case.bench.fresh(), case.bench.fresh()
    scorer = case.criterion.scorer(model, case.bench.graph, event=0)
    try:
        for batch in (case.first, case.second):
            train(model, scorer, batch)
            twin.zero_grad(set_to_none=True)
            loss_of(twin, batch).backward()
            scorer.scores()
        names, expected = set(model.state_dict()), set(twin.state_dict())
        if names != expected:
            return f"the state dict differs in {sorted(names ^ expected)} while it is scored; register nothing on it"
        for what in (_gradients, _tensors):
            if unlike := difference(what(twin), what(model)):
                return f"without and with a scorer, {what.__name__[1:]} differ: {unlike}; leave the model as it is"
        for (name, module), other in zip(model.named_modules(), twin.modules(), strict=True):
            if module.training != other.training:
                return f"{name or 'the model'} has training={module.training} in place of {other.training}"
    finally:
        scorer.close()
    return None


def random_numbers(case: Case) -> str | None:
    """Check that no global generator moves: the training draws from it."""
    before = _generators()
    model = case.bench.fresh()
    scorer = case.criterion.scorer(model, case.bench.graph, event=0)
    try:
        train(model, scorer, case.first)
        scorer.scores()
    finally:
        scorer.close()
    moved = [name for name, state in _generators().items() if state != before[name]]
    if moved:
        return f"the global generator of {', '.join(moved)} was used; draw from a torch.Generator seeded with the event"
    return None


def left_behind(case: Case) -> str | None:
    """Check that a closed scorer has left no hook, attribute or class on the model, also when closed twice."""
    model = case.bench.fresh()
    before = _inventory(model)
    scorer = case.criterion.scorer(model, case.bench.graph, event=0)
    train(model, scorer, case.first)
    scorer.close()
    scorer.close()
    after = _inventory(model)
    changed = sorted(key for key in {**before, **after} if before.get(key) != after.get(key))
    if changed:
        return f"after close(), the model differs in {', '.join(changed[:8])}; take off in close() what scorer() put on"
    return None


def _gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.flatten() for name, p in model.named_parameters() if p.grad is not None}


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    tensors = (*model.named_parameters(), *model.named_buffers())
    return {name: t.detach().flatten().double() for name, t in tensors}


def _generators() -> dict[str, Any]:
    states: dict[str, Any] = {"torch": torch.get_rng_state().tolist(), "random": random.getstate()}
    if "numpy" in sys.modules:
        _, keys, *rest = sys.modules["numpy"].random.get_state()
        states["numpy"] = (keys.tolist(), rest)
    return states


def _inventory(model: nn.Module) -> dict[str, Any]:
    """Everything that a scorer could leave on a model, by a name for the message."""
    things: dict[str, Any] = {}
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        things[f"type({name or 'model'})"] = type(module)
        for key, value in vars(module).items():
            things[prefix + key] = list(value) if isinstance(value, dict) else value
        for key, parameter in module._parameters.items():
            if parameter is not None:
                hooks = (parameter._backward_hooks, getattr(parameter, "_post_accumulate_grad_hooks", None))
                things[f"hooks of {prefix}{key}"] = [len(each or ()) for each in hooks]
                things[f"identity of {prefix}{key}"] = (id(parameter), parameter.requires_grad)
    return things
