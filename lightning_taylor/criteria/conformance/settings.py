"""Rules about a criterion itself: a recipe of plain settings, which is printed, copied and built from YAML."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
import sys
from importlib.util import find_spec
from typing import Any, get_args

import torch

from lightning_taylor.criteria.base import Criterion
from lightning_taylor.criteria.conformance.bench import score
from lightning_taylor.criteria.conformance.rules import Case
from lightning_taylor.scores.normalize import Normalization
from lightning_taylor.utilities.checks import is_number

__all__ = [
    "copies",
    "defaults",
    "parameters",
    "reuse",
    "round_trip_of_repr",
    "yaml",
]


def parameters(case: Case) -> str | None:
    """Check that every argument of ``__init__`` has a type and stays as an attribute."""
    for name, parameter in _parameters(case.criterion).items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            return f"__init__ takes *{name}, which no configuration can name; list the settings one by one"
        if parameter.annotation is parameter.empty:
            return f"argument {name!r} of __init__ has no type, which LightningCLI goes by; annotate it"
        if not hasattr(case.criterion, name):
            kept = ", ".join(vars(case.criterion)) or "nothing"
            return f"argument {name!r} of __init__ is kept under no attribute of that name ({kept} is); set self.{name}"
    return None


def round_trip_of_repr(case: Case) -> str | None:
    """Check that ``repr`` is code that builds the criterion: a resumed fit compares it with the checkpoint's."""
    text = repr(case.criterion)
    try:
        built = eval(text, _names(case.criterion))
    except Exception as error:
        return (
            f"repr gives {text!r}, which does not evaluate ({type(error).__name__}: {error}); keep plain settings as "
            "attributes, or return the call that builds it from __repr__"
        )
    same_class = type(built) is type(case.criterion)
    unlike = _unlike(case.criterion, built) if same_class else type(built).__name__
    if unlike:
        return f"repr gives {text!r}, which builds another one ({unlike}); print every setting"
    return None


def yaml(case: Case) -> str | None:
    """Check that jsonargparse, and so LightningCLI, builds the criterion from its settings, if it is installed."""
    if find_spec("jsonargparse") is None:
        return None
    import jsonargparse

    settings = _plain_settings(case.criterion)
    try:
        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(type(case.criterion), "criterion", fail_untyped=False)
        built = parser.instantiate(parser.parse_object({"criterion": settings})).criterion
    except Exception as error:
        reason = str(error).strip().splitlines()[-1].strip()
        return (
            f"LightningCLI cannot build it from {settings}: {reason}; annotate __init__ with types that YAML can hold"
        )
    if unlike := _unlike(case.criterion, built):
        return f"LightningCLI builds another one from {settings} ({unlike}); keep the arguments as they are given"
    return None


def copies(case: Case) -> str | None:
    """Check that a criterion is copied and pickled with its settings, as it is on the way to other processes."""
    for how, copied in (("copy.deepcopy", copy.deepcopy), ("pickle", lambda c: pickle.loads(pickle.dumps(c)))):
        try:
            other = copied(case.criterion)
        except Exception as error:
            return f"{how} raises {type(error).__name__}: {error}; keep no open resource, model or lambda as a setting"
        if unlike := _unlike(case.criterion, other):
            return f"{how} makes another one ({unlike}); keep plain settings only"
    return None


def defaults(case: Case) -> str | None:
    """Check what the callback takes from a criterion where the user leaves the choice to it."""
    scale, power = case.criterion.default_normalization, case.criterion.default_cost_power
    if scale not in get_args(Normalization):
        return f"default_normalization is {scale!r}; return one of {', '.join(get_args(Normalization))}"
    if not is_number(power) or not 0 <= power < math.inf:
        return f"default_cost_power is {power!r}; return a number of at least 0"
    return None


def reuse(case: Case) -> str | None:
    """Check that scoring changes no setting: one criterion starts a scorer at every event, and on other models."""
    before = {name: _printed(value) for name, value in vars(case.criterion).items()}
    score(case.criterion, case.bench, [case.first])
    after = {name: _printed(value) for name, value in vars(case.criterion).items()}
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if changed:
        return f"scoring changed its attributes {', '.join(changed)}; keep what is gathered in the scorer"
    return None


def _parameters(criterion: Criterion) -> dict[str, inspect.Parameter]:
    if type(criterion).__init__ is object.__init__:
        return {}
    return {k: v for k, v in inspect.signature(type(criterion).__init__).parameters.items() if k != "self"}


def _names(criterion: Criterion) -> dict[str, Any]:
    """What a user could have imported who types in the ``repr``."""
    names: dict[str, Any] = {"torch": torch}
    for part in (*vars(criterion).values(), criterion):
        names.update(vars(sys.modules[type(part).__module__]))
        names[type(part).__name__] = type(part)
    return names


def _plain_settings(criterion: Criterion) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if not isinstance(value, Criterion):
            return value
        kind = type(value)
        return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": _plain_settings(value)}

    return {name: plain(getattr(criterion, name)) for name in _parameters(criterion) if hasattr(criterion, name)}


def _unlike(one: Criterion, other: Criterion) -> str | None:
    before, after = ({k: _printed(v) for k, v in vars(c).items()} for c in (one, other))
    name = next((name for name in {**before, **after} if before.get(name) != after.get(name)), None)
    if name is not None:
        return f"{name} is {after.get(name, 'missing')} in place of {before.get(name, 'missing')}"
    return None if repr(one) == repr(other) else f"{other!r} in place of {one!r}"


def _printed(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"
