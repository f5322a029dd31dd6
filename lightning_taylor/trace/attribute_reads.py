"""Which attributes the code of a model reads while it runs: the others cannot change what it computes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["attribute_reads"]


@contextmanager
def attribute_reads(net: nn.Module, wanted: Mapping[str, Collection[str]]) -> Iterator[set[tuple[str, str]]]:
    """Note which attributes are read in the block.

    The classes of the modules look on meanwhile: were it the modules that changed theirs, ``type(module)`` would show.

    Args:
        net: the model.
        wanted: name of a module -> the attributes to note.

    Yields:
        Module and attribute of each that was read so far.

    Example:
        >>> net = nn.Identity()
        >>> net.width, net.depth = 8, 2
        >>> with attribute_reads(net, {"": ["width", "depth"]}) as seen:
        ...     _ = 2 * net.width
        >>> seen
        {('', 'width')}
    """
    modules = dict(net.named_modules())
    owners = {(id(modules[owner]), name): (owner, name) for owner, names in wanted.items() for name in names}
    classes = dict.fromkeys(type(modules[owner]) for owner, names in wanted.items() if names)
    seen: set[tuple[str, str]] = set()
    own = {cls: vars(cls).get("__getattribute__") for cls in classes}
    try:
        for cls in classes:
            cls.__getattribute__ = _noting(cls.__getattribute__, owners, seen)  # type: ignore[method-assign]
        yield seen
    finally:
        for cls, reader in own.items():
            if reader is None:
                del cls.__getattribute__
            else:
                cls.__getattribute__ = reader  # type: ignore[method-assign]


def _noting(reader: Any, owners: Mapping[tuple[int, str], tuple[str, str]], seen: set[tuple[str, str]]) -> Any:
    def read(self: nn.Module, name: str) -> Any:
        if (owner := owners.get((id(self), name))) is not None:
            seen.add(owner)
        return reader(self, name)

    return read
