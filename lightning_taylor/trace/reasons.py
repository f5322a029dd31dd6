"""Why channels stay, in one table: the sentence that a graph keeps, and what would help."""

from __future__ import annotations

import re
from enum import Enum
from string import Formatter

__all__ = ["Why"]

_NORM = "allow_inexact_norms, or BatchNorm in its place"
_EVENLY = "cut into equal parts (chunk), or use layers of their own in place of one that is cut"
_ATTENTION = "attention_heads='spread', with a `scale` that is a number of its own"


class Why(Enum):
    """A reason, as a template of its sentence and a remedy: a change of the model's code, or of an option of the trace.

    The remedy is empty where none is known, or nothing is wrong. Of a text with several reasons, the remedy of the
    first one in this table counts.

    Example:
        >>> Why.IGNORED(pattern="stem")
        "ignored by the pattern 'stem'"
        >>> Why.IGNORED.remedy
        'leave the pattern out of `ignore`'
        >>> Why.READS_INPUT("convolution in conv1").endswith("the network's input (convolution in conv1)")
        True
    """

    IGNORED = "ignored by the pattern {pattern!r}", "leave the pattern out of `ignore`"
    OUT_OF_SCOPE = (
        "outside of the scope {pattern!r}, so neither removed nor counted",
        "name it in `scope`, or leave `scope` out",
    )
    UNSAVED = (
        "lies along the buffer {name}, which no checkpoint holds",
        "register the buffer with persistent=True",
    )
    STATISTICS = "its statistics run over the channels ({where}), so removing one changes the others", _NORM
    SCALES_NORM = "scales a normalisation over the channels ({where})", _NORM
    ASSUMES_WIDTH = (
        "the model's code assumes its width ({error})",
        "take sizes from the tensor (x.shape[1], -1) in place of a number",
    )
    CUT = "taken apart at fixed positions by {where}", _EVENLY
    PICKED = "picked or reordered at fixed positions by {where}", _EVENLY
    NO_RULE = "no rule for {where}", "standard operators in its place, or this part kept as it is by `ignore`"
    ATTENTION_WIDTH = "the width of the {name} of an attention ({where})", _ATTENTION
    CONTRACTED = (
        "contracted with another activation by {where}",
        "attention_heads='spread', where they are queries and keys",
    )
    PADDED = "meets padding of a fixed width in {where}", "a 1x1 convolution in place of the padded shortcut"
    COMPUTED_INDEX = (
        "indexed by a computed tensor ({where})",
        "index positions after the channels, not the channels",
    )
    UNREAD = "nothing that was run reads it", "example inputs that reach it, if a later step does"

    # What is made, and what is read.
    OUTPUT = ("reaches the output",)
    LOSS = ("reaches the loss",)
    OUTSIDE = ("part of the loss: forward does not run it, and it is not trained",)
    COPY = "a copy of {original}, which it goes along with", "name it in `ignore` if it has to stay as it is"
    SINGLE_CHANNEL = ("has a single channel",)
    ONE_UNIT = ("all its channels are tied into one",)
    NO_TWO_ALIKE = ("all its channels are tied into {tied}, of which none is tied as another is",)
    READS_INPUT = ("reads the network's input ({where})",)
    ONLY_INPUT = ("the only input channel of {where}",)
    READS_HOLES = ("reads entries without a channel ({where})",)
    READS_NO_CHANNELS = ("reads a tensor without channels ({where})",)
    NORM_WITHOUT_CHANNELS = ("normalises a tensor without channels ({where})",)
    ADDED_WITHOUT_CHANNELS = ("added to a tensor without channels ({where})",)
    BESIDE_NO_CHANNELS = ("beside a tensor without channels ({where})",)

    # What is summed over, ordered or mixed.
    REDUCED = ("reduced over the channels by {where}",)
    SUMMED = ("summed over by {where}",)
    CONTRACTED_PARAMETER = ("contracted with another parameter by {where}",)
    ORDERED = ("normalised or ordered along the channels by {where}",)
    POSITIONS = ("channels lie along the positions that {where} works over",)
    MIXED = ("mixed with other channels by {where}",)
    MIXED_DIMENSIONS = ("mixed with other dimensions by {where}",)
    SPREAD = ("spread over the channels of another tensor by {where}",)
    OTHER_CHANNELS = ("its output also carries another tensor's channels ({where})",)
    BATCH = ("one of a batch of matrices ({where})",)

    # What is arranged or written.
    GRID = ("arranged as a grid by {where}",)
    UNEQUAL_GROUPS = ("grouped convolution: {groups} groups must keep equal widths ({where})",)
    PROJECTED = ("projected by {name}",)
    WRITTEN_PART = ("written into a part of another tensor ({where})",)
    OVERWRITTEN = ("part of it is overwritten ({where})",)
    WRITTEN_BY_INDEX = ("written by an index ({where})",)

    # What is no activation.
    COMPUTED_WEIGHT = ("the weight is computed from activations ({where})",)
    BARE_PARAMETER = ("a bare parameter's positions ({where})",)
    PADDED_PARAMETER = ("a padded parameter ({where})",)
    PARAMETER_POSITIONS = ("positions of a parameter that {where} reads",)
    TABLE = ("a table that {where} reads",)
    TABLE_ROWS = ("rows of a table ({where})",)
    TABLE_OF_INDICES = ("a table of indices ({where})",)
    COORDINATES = ("coordinates of {what} ({where})",)
    RANK = ("the rank of a product of parameters ({where})",)
    ADDED_TO_PRODUCT = ("added to a product of parameters ({where})",)
    WEIGHT_LENGTH = ("the length of a weight is taken over it ({where})",)

    # What the proof by trial says.
    CHANGES_SHAPE = ("removing its channels changes the shape of the output",)
    CHANGES_READ = ("removing its channels changes what {layer} reads by {difference:.1e} (relative)",)
    CHANGES_OUTPUT = ("removing its channels changes the output by {difference:.1e} (relative)",)

    def __init__(self, sentence: str, remedy: str = "") -> None:
        self.sentence = sentence
        self.remedy = remedy
        literals = [re.escape(literal) for literal, *_ in Formatter().parse(sentence)]
        self._pattern = re.compile(".*?".join(literals), re.DOTALL)

    def __call__(self, where: str = "", **fields: object) -> str:
        """Write the sentence.

        Args:
            where: the operator, the module and the line of the model's code, as ``OperatorCall.where``.
            fields: what else the template asks for.
        """
        return self.sentence.format(where=where, **fields)

    def is_said_in(self, text: str) -> bool:
        """Return whether a text of ``ChannelGraph.frozen`` gives this reason, among others perhaps."""
        return self._pattern.search(text) is not None
