"""What would make a frozen layer removable, where something would: a change of the model's code or of a setting."""

from __future__ import annotations

__all__ = ["remedy_for"]

_REMEDIES = (
    ("ignored by the pattern", "leave the pattern out of `ignore`"),
    ("statistics run over the channels", "allow_inexact_norms, or BatchNorm in its place"),
    ("scales a normalisation over the channels", "allow_inexact_norms, or BatchNorm in its place"),
    ("assumes its width", "take sizes from the tensor (x.shape[1], -1) in place of a number"),
    ("at fixed positions", "cut into equal parts (chunk), or use layers of their own in place of one that is cut"),
    ("no rule for", "standard operators in its place, or this part kept as it is by `ignore`"),
    ("of an attention (", "attention_heads='spread', with a `scale` that is a number of its own"),
    ("contracted with another activation", "attention_heads='spread', where they are queries and keys"),
    ("padding of a fixed width", "a 1x1 convolution in place of the padded shortcut"),
    ("indexed by a computed tensor", "index positions after the channels, not the channels"),
    ("nothing that was run reads it", "example inputs that reach it, if a later step does"),
)


def remedy_for(reason: str) -> str:
    """What one could do about a reason of ``ChannelGraph.frozen``; empty where nothing is known, or nothing is wrong.

    Example:
        >>> remedy_for("ignored by the pattern 'stem'")
        'leave the pattern out of `ignore`'
        >>> remedy_for("reaches the output")  # the classes
        ''
    """
    return next((remedy for said, remedy in _REMEDIES if said in reason), "")
