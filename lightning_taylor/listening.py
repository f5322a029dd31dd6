"""What a model is called with in a training batch, recorded until it is asked for."""

from __future__ import annotations

from typing import final

from torch import nn

from lightning_taylor.graph.capture import CallRecorder
from lightning_taylor.utilities.atomic import signals_deferred
from lightning_taylor.utilities.calls import ForwardCall

__all__ = ["Listening"]


@final
class Listening:
    """The recorder of a model's calls, if there is one at the moment.

    Example:
        >>> listening, net = Listening(), nn.Linear(2, 1)
        >>> listening.begin(net)
        >>> len(listening.end() or []), listening.end()
        (0, None)
    """

    def __init__(self) -> None:
        self._recorder: CallRecorder | None = None

    def begin(self, model: nn.Module) -> None:
        """Record what the model is called with, until ``end``."""
        with signals_deferred():  # a Ctrl-C among its hooks would leave some that nobody knows
            self._recorder = CallRecorder(model)

    def clear(self) -> None:
        """Forget what was recorded so far: another batch begins."""
        if self._recorder:
            self._recorder.clear()

    def end(self) -> list[ForwardCall] | None:
        """Take the recorder off, and give the calls since the last ``clear``; None if there was no recorder."""
        if not self._recorder:
            return None
        calls = list(self._recorder.calls)
        self._recorder.close()
        self._recorder = None
        return calls
