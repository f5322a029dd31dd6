"""Numbers that modules keep about their widths and that other methods read: ``num_features``, ``out_channels``.

No forward pass need run by them, so that no operator shows what they count; but the module's code handles tensors: what
it is given, what it gives its parts and gets from them, and what it returns. A number that is called after a width and
equals the channels of one kind of tensor among these, and of no other, counts those; if it equals those of none, what
the parts of its ``nn.Sequential`` give each other is looked at alike. Where several are as wide, one that is called
after the output counts what the module returns, and one by which a new head is made counts what is handled last; of the
others it is in doubt which they count, and only where the proof refuses a removal is it tried whether they count what
the module is given, as in ``assert x.shape[1] == self.channels``. Of a list whose entries equal the channels of the
tensors that are returned, in order, each counts its own; an entry beside the name of a part, as in
``{"num_chs": 64, "module": "layer1"}``, counts those that the part returns, of several tensors the one kind that is as
wide. Of the numbers around a removal that the proof refuses, those that the code reads when it runs are left as they
are; the others cannot be why. What is still in doubt stays, and is listed in the graph with the reason.

A number that is called otherwise, such as ``shape[0]``, follows only where the code reads it and a removal is refused
without.

Shape legend: C = channels of a tensor.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from lightning_taylor.graph.types import Axis, LinkedAttribute
from lightning_taylor.modules.attribute_paths import numbers_in, split_path
from lightning_taylor.modules.attributes import rule_of
from lightning_taylor.trace.attribute_reads import attribute_reads
from lightning_taylor.trace.constraints.attribute_sizes import may_count
from lightning_taylor.trace.labels import Labels, running
from lightning_taylor.trace.partition import Constraint, LabelPartition
from lightning_taylor.utilities.calls import tensors_in

__all__ = ["ToldWidths"]

_WIDTHS = ("dim", "width", "channel", "chs", "hidden", "planes", "feature", "embed")

_SEVERAL = "tensors of several kinds have as many channels"

_REFUSED = "the network would compute something else if it followed"

_NO_AXIS = "no tensor dimension has these channels one by one"

_OF_HEAD = ("num_features", "head_hidden_size")
"""What timm's networks call the width by which they make a new head."""

_NOT = ("base", "img", "image", "patch", "window", "grid", "in_ch", "reduction")


@dataclass
class _Handled:
    """What the code of one module sees.

    Attributes:
        numbers: path of an attribute -> its value, of those that may count channels.
        vectors: labels (C,) of every tensor with channels that has one of these sizes; None of one without.
        inside: the same of what the parts of its ``nn.Sequential`` give each other.
        given: labels of the tensors that the module was given last, in order.
        returned: those of the ones that it returned.
    """

    numbers: Mapping[str, int] = field(default_factory=dict)
    vectors: list[tuple[int, np.ndarray | None]] = field(default_factory=list)
    inside: list[tuple[int, np.ndarray | None]] = field(default_factory=list)
    given: list[np.ndarray | None] = field(default_factory=list)
    returned: list[np.ndarray | None] = field(default_factory=list)

    def as_wide(self, value: int) -> list[np.ndarray | None]:
        """Return the labels of all tensors of a size: those inside of an ``nn.Sequential`` only if it sees no other."""
        seen = [vector for size, vector in self.vectors if size == value]
        return seen or [vector for size, vector in self.inside if size == value]


_HOLDERS = (nn.ModuleList, nn.ModuleDict)

_SURE, _GUESSED, _LEFT = range(3)


class ToldWidths(Constraint):
    """The numbers of all modules of a trace, and the tensors that their code handles."""

    def __init__(self, partition: LabelPartition) -> None:
        self._partition = partition
        self._handled: dict[str, _Handled] = {}
        self._beside: dict[tuple[str, str], str] = {}
        self._owner_of: dict[str, str] = {}
        self._turn: dict[tuple[str, str], int] = {}
        self._read: set[tuple[str, str]] = set()

    def begin(self, modules: Mapping[str, nn.Module]) -> None:
        """Look for the numbers of every module that has no rule of its own; a no-op the second time."""
        if self._handled:
            return
        for name, module in modules.items():
            found = numbers_in(module) if rule_of(module) is None else {}
            numbers: dict[str, int] = {}
            for path, entry in found.items():
                inside = [part for text in entry.beside if text and (part := f"{name}.{text}".lstrip(".")) in modules]
                # What else a dict holds may be what the module was built with.
                if _may_be_width(path) and (len(inside) == 1 or not path.endswith("']")):
                    numbers[path] = entry.value
                    if len(inside) == 1:
                        self._beside[name, path] = inside[0]
            self._handled[name] = _Handled(numbers)
            if name and (type(module).forward is nn.Sequential.forward or isinstance(module, _HOLDERS)):
                around = name.rpartition(".")[0]
                self._owner_of[name] = self._owner_of.get(around, around)

    @contextmanager
    def watching(self, net: nn.Module) -> Iterator[None]:
        """Note which of the numbers the code reads in the block."""
        wanted = {name: {split_path(path)[0] for path in handled.numbers} for name, handled in self._handled.items()}
        with attribute_reads(net, wanted) as seen:
            yield
        self._read |= seen

    def note(
        self, owner: str, module: str, given: Any, returned: Any, labels_of: Callable[[Tensor], Labels | None]
    ) -> None:
        """Note a call: the owner's code handles what it gives a part and gets back, and so does the part's.

        Args:
            owner: the module whose code made the call.
            module: the one that was called.
            given: its arguments.
            returned: what it returned.
            labels_of: what a tensor carries.
        """
        mine, owners = self._handled[module], self._handled[owner]
        around = self._handled[self._owner_of[owner]] if owner in self._owner_of else _Handled()
        mine.given, mine.returned = [], []
        for tensor in tensors_in(returned):
            vector = _channels(labels_of(tensor))
            mine.returned.append(vector)
            self._see(tensor, vector, mine, owners, around)
        for tensor in tensors_in(given):
            if any(size in handled.numbers.values() for size in tensor.shape for handled in (mine, owners, around)):
                vector = _channels(labels_of(tensor))
                mine.given.append(vector)
                self._see(tensor, vector, mine, owners, around)

    def try_next(self, labels: np.ndarray, reason: str) -> bool:
        """Let the numbers in doubt follow these channels, too; then leave all that count them as they are."""
        around = self._around(labels)
        if around:
            self._turn.update(around)
        else:
            # They are refused without any number, too: it was for another reason, which the next constraint may know.
            self._begin_again(labels)
        return bool(around)

    def affects(self, labels: np.ndarray) -> bool:
        """Return whether numbers follow these channels and need not, or do not and could."""
        return bool(self._around(labels))

    def linked_attributes(self) -> Iterator[LinkedAttribute]:
        """Yield the numbers that count channels of which some may go."""
        component = self._partition.components()
        frozen = self._partition.frozen_components(component)
        axes: dict[bytes, Axis | None] = {}
        for module, path, vector in self._counted(component):
            tied = component[vector]
            if bool((frozen[tied] >= 0).all()):
                continue
            axis = axes.setdefault(tied.tobytes(), self._axis(component, tied))
            if axis is not None:
                yield LinkedAttribute(module, path, axis, len(vector), len(vector))

    def in_doubt(self, linked: Collection[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        """Yield the numbers that may count channels of which some can go, and that stay, each with the reason.

        Args:
            linked: module and attribute of what follows.
        """
        component = self._partition.components()
        frozen = self._partition.frozen_components(component)
        counted = {(module, path) for module, path, _ in self._counted(component)}
        for module, handled in self._handled.items():
            for path, value in handled.numbers.items():
                if not _names_width(path):
                    continue
                alike = [vector for vector in handled.as_wide(value) if vector is not None]
                if (module, path) in linked or all(bool((frozen[component[v]] >= 0).all()) for v in alike):
                    continue
                refused = self._turn.get((module, path)) == _LEFT
                why = _REFUSED if refused else _NO_AXIS if (module, path) in counted else _SEVERAL
                yield f"{module}.{path}".lstrip("."), f"{value}: {why}"

    def _see(
        self, tensor: Tensor, vector: np.ndarray | None, mine: _Handled, owners: _Handled, around: _Handled
    ) -> None:
        for numbers, seen in ((mine, mine.vectors), (owners, owners.vectors), (around, around.inside)):
            sizes = set(numbers.numbers.values())
            if vector is not None and len(vector) in sizes:
                seen.append((len(vector), vector))
            elif vector is None and tensor.is_floating_point():
                channels = tensor.shape[1:2] if tensor.ndim > 3 else tensor.shape[1:]
                seen += [(size, None) for size in channels if size in sizes]

    def _around(self, labels: np.ndarray) -> dict[tuple[str, str], int]:
        """Map the numbers that are read, and count some of these channels or would at their next turn, to that turn.

        While there are guesses to try, the numbers that surely count are not among them.
        """
        component = self._partition.components()
        members = component[labels]
        guesses: dict[tuple[str, str], int] = {}
        others: dict[tuple[str, str], int] = {}
        for key, vectors in self._vectors(component):
            turn = self._turn.get(key, _SURE)
            if not self._reads(*key):
                continue
            guess = turn == _SURE and vectors[_SURE] is None and vectors[_GUESSED] is not None
            after = _GUESSED if guess else _LEFT
            if _any_of((vectors[turn], vectors[after]), component, members):
                (guesses if guess else others)[key] = after
        return guesses or others

    def _reads(self, module: str, path: str) -> bool:
        """Return whether the code has read a number, or what it is in."""
        return (module, split_path(path)[0]) in self._read

    def _begin_again(self, labels: np.ndarray) -> None:
        component = self._partition.components()
        members = component[labels]
        for key, vectors in self._vectors(component):
            if self._turn.get(key) == _LEFT and _any_of(vectors, component, members):
                del self._turn[key]

    def _counted(self, component: np.ndarray) -> Iterator[tuple[str, str, np.ndarray]]:
        """Yield each module and number with the channels that it counts."""
        for key, vectors in self._vectors(component):
            vector = vectors[self._turn.get(key, _SURE)]
            if vector is not None:
                yield *key, vector

    def _vectors(self, component: np.ndarray) -> Iterator[tuple[tuple[str, str], tuple[np.ndarray | None, ...]]]:
        """Yield each module and number with the channels that it counts at every turn."""
        for module, handled in self._handled.items():
            lists = _lists(handled)
            for path, value in handled.numbers.items():
                named, part = _names_width(path), self._beside.get((module, path))
                if not named and not self._reads(module, path):
                    continue
                if part is not None:
                    sure = guessed = _only(_as_wide(self._handled[part].returned, value), component)
                elif path in lists:
                    sure = guessed = lists[path]
                else:
                    sure, guessed = _alone(handled, path, component)
                fitting = (v if v is not None and len(v) == value else None for v in (sure if named else None, guessed))
                yield (module, path), (*fitting, None)

    def _axis(self, component: np.ndarray, tied: np.ndarray) -> Axis | None:
        """Return the first dimension of a tensor whose entries go one by one with these channels."""
        fitting = (
            axis for axis in self._partition.axes_of_size(len(tied))
            if np.array_equal(component[self._partition.entries(axis)], tied)
        )  # fmt: skip
        return next(fitting, None)


def _any_of(vectors: Sequence[np.ndarray | None], component: np.ndarray, members: np.ndarray) -> bool:
    """Return whether one of the vectors has channels that go together with some of these."""
    return any(v is not None and bool(np.isin(component[v], members).any()) for v in vectors)


def _alone(handled: _Handled, path: str, component: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return the channels that a number in no list counts surely, and those that it counts by a guess."""
    value = handled.numbers[path]
    kinds = _kinds(handled.as_wide(value), component)
    if len(kinds) < 2:
        sure = next(iter(kinds.values()), None)
    elif path in _OF_HEAD:
        sure = handled.as_wide(value)[-1]
    elif "out" in path.lower():
        sure = _only(_as_wide(handled.returned, value), component)
    else:
        return None, _only(_as_wide(handled.given, value), component)
    return sure, sure


def _as_wide(vectors: Sequence[np.ndarray | None], size: int) -> list[np.ndarray | None]:
    return [vector for vector in vectors if vector is not None and len(vector) == size]


def _kinds(vectors: Sequence[np.ndarray | None], component: np.ndarray) -> dict[bytes, np.ndarray | None]:
    """Return one of the vectors of each kind: those whose channels go together, and those without any."""
    return {b"" if vector is None else component[vector].tobytes(): vector for vector in vectors}


def _only(vectors: Sequence[np.ndarray | None], component: np.ndarray) -> np.ndarray | None:
    kinds = list(_kinds(vectors, component).values())
    return kinds[0] if len(kinds) == 1 else None


def _names_width(path: str) -> bool:
    return _may_be_width(path) and any(word in path.lower() for word in _WIDTHS)


def _may_be_width(path: str) -> bool:
    return may_count(path) and not any(word in path.lower() for word in _NOT)


def _channels(labels: Labels | None) -> np.ndarray | None:
    """Return the channels (C,) of an activation that has some along one dimension and everywhere on it."""
    if labels is None or labels.weight or len(labels.slots) != 1:
        return None
    slot = labels.slots[0]
    along = running(slot)
    if len(along) != 1:
        return None
    (dim,) = along
    line = slot[tuple(slice(None) if d == dim + slot.ndim else 0 for d in range(slot.ndim))].numpy()
    return line.copy() if bool((line >= 0).all()) else None


def _lists(handled: _Handled) -> dict[str, np.ndarray | None]:
    """Map the entries of a list that tells the channels of all returned tensors, or of the last ones, to these."""
    entries: dict[str, list[str]] = defaultdict(list)
    for path in handled.numbers:
        name, bracket, _ = path.rpartition("[")
        if bracket:
            entries[name].append(path)
    counted: dict[str, np.ndarray | None] = {}
    for paths in entries.values():
        if len(paths) > 1 and _tells(handled, paths):
            counted.update(zip(reversed(paths), reversed(handled.returned), strict=False))
    return counted


def _tells(handled: _Handled, paths: Sequence[str]) -> bool:
    returned = handled.returned
    pairs = list(zip(reversed(paths), reversed(returned), strict=False))
    return len(pairs) > 1 and all(v is None or len(v) == handled.numbers[path] for path, v in pairs)
