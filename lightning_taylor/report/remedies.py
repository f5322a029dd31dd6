"""What would make a frozen layer removable, where something would: a change of the model's code or of a setting."""

from __future__ import annotations

from lightning_taylor.trace.reasons import Why

__all__ = ["remedy_for"]


def remedy_for(reason: str) -> str:
    """Say what one could do about a reason of ``ChannelGraph.frozen``; empty if nothing is known, or nothing is wrong.

    Example:
        >>> remedy_for("ignored by the pattern 'stem'")
        'leave the pattern out of `ignore`'
        >>> remedy_for("reaches the output")  # the classes
        ''
    """
    return next((why.remedy for why in Why if why.remedy and why.is_said_in(reason)), "")
