"""What a user asks ``TaylorPruning`` for, checked as a whole: every wrong value is named in one go."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any, get_args

import torch
from torch import Tensor

from lightning_taylor.criteria.base import Criterion
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.plan.feasibility import own_round_to
from lightning_taylor.plan.guard import Guard
from lightning_taylor.plan.limits import MaxRemoved, WidthLimits
from lightning_taylor.plan.price import power_of_price
from lightning_taylor.plan.schedule import Schedule
from lightning_taylor.plan.score_batches import DEFAULT, ScoreBatches, Scored
from lightning_taylor.plan.target import Target
from lightning_taylor.scores.normalize import Normalization
from lightning_taylor.trace.options import TraceOptions, kinds_of_choices
from lightning_taylor.utilities.checks import is_number, is_whole

__all__ = [
    "CHECKS",
    "FORMER_NAMES",
    "OF_THE_TRACE",
    "Options",
    "as_inputs",
    "as_written",
    "changed_settings",
    "check_arguments",
    "present_names",
    "settings_of",
]

OF_THE_TRACE = ("ignore", *(field.name for field in fields(TraceOptions)))
"""The settings that say what a trace looks for; its result travels with a checkpoint."""

FORMER_NAMES = {"flops_penalty": "cost_penalty", "flops_power": "cost_power"}
"""Arguments of ``TaylorPruning`` that were called otherwise -> their present names."""

_LEFT_OPEN = {"cost_penalty": 0.0, "cost_power": None}
"""What the present names hold where the user gave nothing; any other value was given, a power of 0 too."""

Check = Callable[[str, Any], Iterator[str]]
"""From an argument's name and value to what is wrong with it, in words."""


@dataclass(frozen=True)
class Options:
    """What to reach and how to choose: the arguments of ``TaylorPruning`` that its session needs; see there."""

    target: Target
    criterion: Criterion
    normalization: Normalization = "l2"
    cost_penalty: float = 0.0
    min_channels: int = 1
    round_to: int | None = 1
    cost_power: float = 0.0
    max_removed: MaxRemoved | None = None
    score_batches: ScoreBatches | None = None
    """None for every optimizer step before an event."""
    own_round_to: int = 1
    """Of the device; holds where the user left ``round_to`` open."""
    lowered_to: int | None = None
    """What the device's multiple was lowered to, as the target cannot be met with it; None if it can."""
    is_own_power: bool = False
    """Whether the user left ``cost_power`` open: then it is the criterion's, for FLOPs; see ``power``."""

    @classmethod
    def of(
        cls,
        target: float | Target,
        criterion: Criterion,
        normalization: Normalization | None,
        cost_penalty: float,
        min_channels: int,
        round_to: int | None,
        cost_power: float | None = 0.0,
        max_removed: MaxRemoved | None = None,
        score_batches: Scored | None = None,
    ) -> Options:
        """With the user's choice; what is None becomes the criterion's own, ``round_to`` the device's: see ``on``.

        Where a penalty is weighed the normalization is "l2". The power is the criterion's own only for scores that are
        compared as the criterion wants it, and without a penalty.

        Example:
            >>> from lightning_taylor.criteria import Taylor
            >>> [Options.of(0.5, Taylor(), None, penalty, 1, 1).normalization for penalty in (0.0, 1e-3)]
            ['none', 'l2']
            >>> [Options.of(0.5, Taylor(), scale, 0.0, 1, 1, None).power("flops") for scale in (None, "l2")]
            [0.5, 0.0]
        """
        target = Target.of(target)
        scale = normalization or ("l2" if cost_penalty else criterion.default_normalization)
        is_own = cost_power is None
        if cost_power is None:
            as_it_wants = scale == criterion.default_normalization and not cost_penalty
            cost_power = criterion.default_cost_power if as_it_wants else 0.0
        steps = _scored(score_batches)
        chosen = (target, criterion, scale, cost_penalty, min_channels, round_to, cost_power, max_removed, steps)
        return cls(*chosen, is_own_power=is_own)

    def on(self, device: torch.device) -> Options:
        """With the device's own multiple."""
        return replace(self, own_round_to=own_round_to(device, timed="latency" in self.target.asked))

    @property
    def multiple(self) -> int:
        """What the widths are kept at multiples of."""
        return self.round_to or min(self.own_round_to, self.lowered_to or self.own_round_to)

    def power(self, resource: str) -> float:
        """Return the power of a channel's price that its score is divided by, where the price is of this resource."""
        return power_of_price(self.cost_power, resource) if self.is_own_power else self.cost_power

    def limits(self, graph: ChannelGraph) -> WidthLimits:
        """How narrow the groups of a graph may become."""
        return WidthLimits.of(graph, self.min_channels, self.multiple, self.max_removed)

    def finer(self) -> Options | None:
        """With half the multiple, where it was not the user who chose it and it can be halved."""
        return replace(self, lowered_to=self.multiple // 2) if not self.round_to and self.multiple > 1 else None


def _scored(asked: Scored | None) -> ScoreBatches | None:
    """Which steps are scored, as it was asked for; None for all."""
    if asked is None:
        return DEFAULT
    if isinstance(asked, int):
        return ScoreBatches(asked, spread=False)
    return None if asked == "all" else asked


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Check all arguments of ``TaylorPruning`` together.

    Args:
        arguments: name -> what the user gave; names that are missing are taken for right.

    Raises:
        ValueError: listing every argument that is wrong, with its value and what it takes.

    Example:
        >>> check_arguments({"target": 0.5, "round_to": 8})
        >>> check_arguments({"target": -1, "round_to": 0})
        Traceback (most recent call last):
        ValueError: 2 arguments of TaylorPruning are wrong:
        - target flops=-1 is not a fraction of the dense model in (0, 1]: 1 leaves the model as it is, 0.5 halves it
        - round_to must be a whole number of at least 1, got 0
    """
    problems = [text for name, value in arguments.items() if name in CHECKS for text in CHECKS[name](name, value)]
    given = {k for k, left in _LEFT_OPEN.items() if k in arguments and arguments[k] != left}
    twice = {k: v for k, v in FORMER_NAMES.items() if arguments.get(k) is not None and v in given}
    problems += [f"{old} is the former name of {new}: give one of them" for old, new in twice.items()]
    if len(problems) > 1:
        listed = "\n- ".join(problems)
        raise ValueError(f"{len(problems)} arguments of TaylorPruning are wrong:\n- {listed}")
    if problems:
        raise ValueError(problems[0])


def present_names(arguments: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the arguments that were called otherwise, in the order of ``FORMER_NAMES``, whatever name they came by.

    Example:
        >>> present_names({"cost_penalty": 0.0, "cost_power": None, "flops_penalty": 1e-3, "flops_power": None})
        (0.001, None)
    """
    pairs = ((arguments[old], arguments[new]) for old, new in FORMER_NAMES.items())
    return tuple(new if old is None else old for old, new in pairs)


def as_inputs(value: Any) -> Any:
    """Example inputs as a model takes them: a shape becomes random numbers, anything else stays.

    A configuration file can name a shape where it cannot hold a tensor. The random numbers are always the same, and
    take none from torch's own generator.

    Example:
        >>> as_inputs([2, 3, 8, 8]).shape
        torch.Size([2, 3, 8, 8])
    """
    return torch.rand(*value, generator=torch.Generator().manual_seed(0)) if _is_shape(value) else value


def as_written(arguments: Mapping[str, Any], kind: type) -> str:
    """Write arguments as they stand in a call: without those that are the class's defaults; tensors by their shapes.

    Example:
        >>> as_written({"momentum": 0.9, "dampening": 0, "params": [torch.zeros(2, 3)]}, torch.optim.SGD)
        'momentum=0.9, params=[tensor of shape (2, 3)]'
    """
    defaults = {name: p.default for name, p in inspect.signature(kind).parameters.items()}
    return ", ".join(f"{k}={_short(v)}" for k, v in arguments.items() if not _is_default(v, defaults[k]))


def _is_default(value: Any, default: Any) -> bool:
    return value is default or (type(value) is type(default) and not isinstance(value, Tensor) and value == default)


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"tensor of shape {tuple(value.shape)}"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {_short(item)}' for key, item in value.items())}}}"
    if type(value) in (list, tuple):
        inside = ", ".join(map(_short, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' * (len(value) == 1)})"
    return repr(value)


def _is_shape(value: Any) -> bool:
    """Whole numbers, all of them positive: no model takes nothing but those."""
    sizes = value if _is_sequence(value) else ()
    return bool(sizes) and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sizes)


def _is_sequence(value: Any) -> bool:
    # Of any class: what reads a configuration file may have a list of its own, as Hydra has.
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)


def _target(name: str, value: Any) -> Iterator[str]:
    try:
        Target.of(value)
    except ValueError as error:
        yield str(error)


def _instance(kind: type, wanted: str) -> Check:
    """None, or an instance of a class; the class itself is a frequent slip."""

    def check(name: str, value: Any) -> Iterator[str]:
        if isinstance(value, type) and issubclass(value, kind):
            yield f"{name} takes {wanted}, got the class {value.__name__}; write {value.__name__}(...)"
        elif value is not None and not isinstance(value, kind):
            yield f"{name} takes {wanted}, got {value!r}"

    return check


def _one_of(words: Any) -> Check:
    """A string among those of a ``Literal``."""

    def check(name: str, value: Any) -> Iterator[str]:
        if value not in get_args(words):
            yield f"{name} must be one of {', '.join(map(repr, get_args(words)))}, got {value!r}"

    return check


def _penalty(name: str, value: Any) -> Iterator[str]:
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not 0 <= float(value) < math.inf:
        hint = " (the paper uses 1e-3)" if name.endswith("penalty") else ""
        yield f"{name} must be a number of at least 0{hint}, got {value!r}"


def _scope(name: str, value: Any) -> Iterator[str]:
    """One pattern may stand alone: a scope is most often a single module."""
    yield from _patterns(name, [value] if isinstance(value, str) else value)


def _patterns(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield f"{name} takes a list of patterns, got the string {value!r}; write [{value!r}]"
    elif not isinstance(value, Sequence):
        yield f"{name} takes a list of name patterns, got {value!r}"
    elif wrong := [pattern for pattern in value if not isinstance(pattern, str) or not pattern]:
        yield f"{name} takes name patterns such as 'layer4' or '*.conv1', got {wrong[0]!r} among them"


def _count(least: int) -> Check:
    def check(name: str, value: Any) -> Iterator[str]:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            yield f"{name} must be a whole number of at least {least}, got {value!r}"

    return check


def _or_none(check: Check) -> Check:
    """The same check, where None leaves the choice to the package."""
    return lambda name, value: check(name, value) if value is not None else iter(())


def _inputs(name: str, value: Any) -> Iterator[str]:
    """Not a number, a text or a broken shape; of anything else only the model itself can judge."""
    numbers = _is_sequence(value) and all(isinstance(n, Real) for n in value)
    if (numbers and not _is_shape(value)) or isinstance(value, str | bytes | Real):
        way = "such as torch.rand(1, 3, 224, 224), or a shape such as [1, 3, 224, 224]"
        yield f"{name} takes what the model's forward takes, {way}, got {value!r}"


def _switch(name: str, value: Any) -> Iterator[str]:
    if not isinstance(value, bool):
        yield f"{name} must be True or False, got {value!r}"


def _baseline(name: str, value: Any) -> Iterator[str]:
    names = isinstance(value, Mapping) and all(isinstance(key, str) and is_number(v) for key, v in value.items())
    if value is not None and not names:
        hint = f"; write {{'val_acc': {value:g}}} with the metric's name" if is_number(value) else ""
        yield f"{name} takes the dense model's metrics by their names, such as {{'val_acc': 0.93}}, got {value!r}{hint}"


def _shares(name: str, value: Any) -> Iterator[str]:
    shares = value if isinstance(value, Mapping) else {"*": value}
    for pattern, share in shares.items() if value is not None else ():
        if not isinstance(pattern, str) or not is_number(share) or not 0 <= share <= 1:
            ways = "0.9 for all layers, or {'layer4*': 0.5} by their names"
            yield f"{name} takes the largest share of a group's channels that may go, in [0, 1]: {ways}; got {value!r}"
            return


def _callable(name: str, value: Any) -> Iterator[str]:
    if value is not None and not callable(value):
        yield f"{name} takes a function of a PruningEvent, got {value!r}"


def _score_batches(name: str, value: Any) -> Iterator[str]:
    if not (value is None or value == "all" or isinstance(value, ScoreBatches) or is_whole(value, at_least=1)):
        yield f"{name} takes a number of steps before each event, ScoreBatches(...) or 'all', got {value!r}"


CHECKS: Mapping[str, Check] = {
    "target": _target,
    "schedule": _instance(Schedule, "Gradual(...), Iterative(...) or OneShot(...)"),
    "criterion": _instance(Criterion, "a criterion such as Taylor() or WeightMagnitude()"),
    "normalization": _or_none(_one_of(Normalization)),
    "cost_penalty": _penalty,
    "cost_power": _or_none(_penalty),
    "flops_penalty": _or_none(_penalty),
    "flops_power": _or_none(_penalty),
    "ignore": _patterns,
    "min_channels": _count(1),
    "round_to": _or_none(_count(1)),
    "example_inputs": _inputs,
    "measure_latency": _switch,
    "guard": _instance(Guard, 'a Guard such as Guard("val_acc", max_drop=0.02)'),
    "allow_untested_strategy": _switch,
    "oracle_sample": _count(0),
    "verbose": _switch,
    "on_event": _callable,
    "baseline": _baseline,
    "max_removed": _shares,
    "score_batches": _score_batches,
    "scope": _scope,
    **{name: _switch if kind is bool else _one_of(kind) for name, kind in kinds_of_choices().items()},
}


def settings_of(options: Any, **others: object) -> dict[str, str]:
    """What a checkpoint says about how it was pruned, in words: the fields of a dataclass, and some more."""
    return {
        **{f.name: repr(getattr(options, f.name)) for f in fields(options)},
        **{k: repr(v) for k, v in others.items()},
    }


def changed_settings(saved: Mapping[str, str], now: Mapping[str, str], *, traced: bool = False) -> str | None:
    """Which settings are not those of the checkpoint, in words; None if all are.

    Args:
        saved: name -> value, of the checkpoint.
        now: name -> value, of the fit that is resumed.
        traced: whether the checkpoint knows the channels; then those settings that the trace reads are its own.

    Example:
        >>> changed_settings({"conv_groups": "'whole'"}, {"conv_groups": "'spread'"}).rpartition(": ")[2]
        "conv_groups='spread', which was 'whole'. The new ones hold"
    """
    changed = {k: f"{k}={now[k]}, which was {saved[k]}" for k in now if k in saved and saved[k] != now[k]}
    if not changed:
        return None
    held = [name for name in changed if traced and name in OF_THE_TRACE]
    said = f"the fit is resumed with other settings than its checkpoint's: {'; '.join(changed.values())}. "
    if not held:
        return f"{said}The new ones hold"
    found = " and ".join(f"{name}={saved[name]}" for name in held)
    return (
        f"{said}The new ones hold, but for {' and '.join(held)}: which channels go together was found with {found} and "
        "travels with the checkpoint; another choice needs a fit of its own"
    )
