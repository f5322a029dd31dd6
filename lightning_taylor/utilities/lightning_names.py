"""One Lightning under two names: ``lightning.pytorch`` and ``pytorch_lightning`` hold equal classes that differ.

An object of one is no instance of the other's class. What this package asks of a Trainer, a strategy or a module is
the same in both, so it asks ``isinstance`` for either.
"""

from __future__ import annotations

import sys

__all__ = [
    "either",
]

_NAME, _OTHER = "lightning.pytorch", "pytorch_lightning"


def either(*classes: type) -> tuple[type, ...]:
    """Classes of ``lightning.pytorch`` with their namesakes of ``pytorch_lightning``, for ``isinstance``.

    Nothing is imported: who has an object of ``pytorch_lightning`` has imported it.

    Args:
        *classes: of ``lightning.pytorch``.

    Returns:
        The classes, each followed by its namesake if there is one in this process.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> either(Trainer)[0] is Trainer
        True
    """
    return tuple(found for own in classes for found in (own, _namesake(own)) if found is not None)


def _namesake(own: type) -> type | None:
    module = sys.modules.get(own.__module__.replace(_NAME, _OTHER, 1))
    return getattr(module, own.__qualname__, None)
