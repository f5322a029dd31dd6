"""A program over feature maps that is being written: what the random networks are drawn with."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

Gene = tuple[int, ...]
"""A few integers: the first chooses a step, the rest its operands and sizes, each modulo what there is to choose."""

WIDTHS = (6, 4, 8, 12)
SIDE = 8


@dataclass
class Value:
    """A feature map: its name in the program, its width and side."""

    name: str
    c: int
    s: int
    fresh: bool = False
    """Made by an operator that does not keep its output for the backward pass, and read by nothing yet."""


@dataclass
class Builder:
    """The program so far, and the gene that is being read."""

    init: list[str] = field(default_factory=list)
    body: list[str] = field(default_factory=list)
    pool: list[Value] = field(default_factory=lambda: [Value("x", 3, SIDE)])
    convs: list[tuple[str, int, int, int]] = field(default_factory=list)
    _gene: list[int] = field(default_factory=list)
    _count: int = 0

    def turn(self, gene: Gene) -> None:
        self._gene = list(gene)

    def below(self, n: int) -> int:
        return self._gene.pop(0) % n if self._gene else 0

    def one_of(self, *options: str) -> str:
        return options[self.below(len(options))]

    def width(self) -> int:
        return WIDTHS[self.below(len(WIDTHS))]

    def any(self) -> Value:
        """One of the three last values, the last by default."""
        value = self.take(lambda v: True)
        assert value is not None
        return value

    def take(self, fits: Callable[[Value], bool]) -> Value | None:
        """One of the three last values that fit, if any does."""
        fitting = [v for v in reversed(self.pool) if fits(v)][:3]
        if not fitting:
            return None
        value = fitting[self.below(len(fitting))]
        value.fresh = False
        return value

    def own(self, expression: str) -> str:
        """A new attribute of the module."""
        self._count += 1
        self.init.append(f"self.m{self._count} = {expression}")
        return f"self.m{self._count}"

    def parameter(self, *shape: int) -> str:
        return self.own(f"nn.Parameter(torch.randn({', '.join(map(str, shape))}))")

    def let(self, expression: str, c: int, s: int, fresh: bool = False) -> bool:
        """A new value of the program."""
        self._count += 1
        self.body.append(f"v{self._count} = {expression}")
        self.pool.append(Value(f"v{self._count}", c, s, fresh))
        return True

    def source(self) -> str:
        """The class as written so far, without the modules that nothing calls."""
        text = "\n".join(self.body)
        called = [line for line in self.init if not (m := re.match(r"self\.m\d+\b", line)) or self._calls(m[0], text)]
        init = "\n        ".join(["super().__init__()", *called])
        body = "\n        ".join(self.body)
        return (
            "class Net(nn.Module):\n"
            f"    def __init__(self):\n        {init}\n\n"
            f"    def forward(self, x):\n        {body}\n        return out\n"
        )

    def _calls(self, name: str, text: str) -> bool:
        ties = "\n".join(line.partition(" = ")[2] for line in self.init)
        return re.search(rf"{re.escape(name)}\b", text + ties) is not None

    def like(self, v: Value) -> Value:
        """Another value of the same shape, or a projection of this one that has it."""
        known = [w for w in reversed(self.pool) if (w.c, w.s) == (v.c, v.s) and w is not v]
        if known and self.below(4) < 3:
            known[0].fresh = False
            return known[0]
        self.let(f"{self.own(f'nn.Conv2d({v.c}, {v.c}, 1)')}({v.name})", v.c, v.s)
        return self.pool[-1]
