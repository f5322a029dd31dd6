"""Random small networks, as Python source that can be read and pasted, drawn from plain integers.

A *gene* is a few integers: the first chooses a step, the rest its operands and sizes, each modulo what there is to
choose from. So any list of genes is a network, and taking genes away or making integers smaller (as hypothesis
does, and ``smaller`` here) gives a simpler one: zero is always the plainest choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random

import torch
import torch.nn.functional as F
from random_program import SIDE, Builder, Gene, Value
from torch import nn

GENE = 6
"""Integers per gene, each in ``range(256)``."""

__all__ = ["GENE", "SIDE", "build", "random_genes", "smaller", "source_of"]

MOST_CHANNELS, LARGEST = 24, 16


def random_genes(random: Random) -> list[Gene]:
    """The ending's gene, and those of 2 to 11 steps."""
    return [tuple(random.randrange(256) for _ in range(GENE)) for _ in range(random.randrange(3, 13))]


def smaller(genes: list[Gene]) -> Iterator[list[Gene]]:
    """Simpler programs: without a step, or with one integer zero."""
    for i in range(1, len(genes)):
        yield genes[:i] + genes[i + 1 :]
    for i, gene in enumerate(genes):
        for j, number in enumerate(gene):
            if number:
                yield [*genes[:i], (*gene[:j], 0, *gene[j + 1 :]), *genes[i + 1 :]]


def source_of(genes: Sequence[Gene]) -> str:
    """The program: a class ``Net`` that takes ``(N, 3, 8, 8)`` and returns a list of tensors."""
    b = Builder()
    b.turn(genes[0][1:])
    conv(b)
    for gene in genes[1:]:
        b.turn(gene[1:])
        if not STEPS[gene[0] % len(STEPS)](b):
            conv(b)
    b.turn(genes[0])
    finish(b)
    return b.source()


def build(source: str) -> nn.Module:
    """The network of a source, with random weights."""
    namespace: dict[str, object] = {"torch": torch, "nn": nn, "F": F}
    exec(compile(source, "<random net>", "exec"), namespace)
    made = namespace["Net"]()  # type: ignore[operator]
    assert isinstance(made, nn.Module)
    return made


def conv(b: Builder) -> bool:
    v = b.any()
    o, k = b.width(), (3, 1)[b.below(2)]
    stride = 2 if b.below(4) == 3 and v.s >= 4 else 1
    m = b.own(f"nn.Conv2d({v.c}, {o}, {k}, {stride}, {k // 2}, bias={b.below(2) == 0})")
    if stride == 1:
        b.convs.append((m, v.c, o, k))
    return b.let(f"{m}({v.name})", o, (v.s - 1) // stride + 1, fresh=True)


def grouped(b: Builder) -> bool:
    """Depthwise with one or two outputs per channel, or two groups."""
    v = b.take(lambda v: v.c % 2 == 0 and v.c <= 12)
    if v is None:
        return False
    groups, o = ((v.c, v.c), (v.c, 2 * v.c), (2, b.width()))[b.below(3)]
    return b.let(f"{b.own(f'nn.Conv2d({v.c}, {o}, 3, 1, 1, groups={groups})')}({v.name})", o, v.s, fresh=True)


def transposed(b: Builder) -> bool:
    v = b.take(lambda v: 2 * v.s <= LARGEST)
    if v is None:
        return False
    o, groups = b.width(), (1, 1, 1, 2 - v.c % 2)[b.below(4)]
    m = b.own(f"nn.ConvTranspose2d({v.c}, {o}, 2, 2, groups={groups})")
    return b.let(f"{m}({v.name})", o, 2 * v.s, fresh=True)


def norm(b: Builder) -> bool:
    v = b.take(lambda v: v.s > 1)
    if v is None:
        return False
    kind = b.below(12)
    if kind == 11:
        tokens = f"{b.own(f'nn.LayerNorm({v.c})')}({v.name}.permute(0, 2, 3, 1))"
        return b.let(f"{tokens}.permute(0, 3, 1, 2)", v.c, v.s)
    options = {9: f"nn.InstanceNorm2d({v.c}, affine=True)", 10: f"nn.GroupNorm({1 + (v.c % 2 == 0)}, {v.c})"}
    return b.let(f"{b.own(options.get(kind, f'nn.BatchNorm2d({v.c})'))}({v.name})", v.c, v.s, fresh=True)


def heads(b: Builder) -> bool:
    """Attention between the positions: a module of torch, or written out with heads of a fixed width."""
    v = b.take(lambda v: v.s <= 6)
    if v is None:
        return False
    tokens, count, o = f"{v.name}.flatten(2).transpose(1, 2)", 2 + b.below(3), b.width()
    if b.below(3) == 2 and v.c % 2 == 0:
        m = b.own(f"nn.MultiheadAttention({v.c}, 2, batch_first=True)")
        mixed, o = f"{m}({tokens}, {tokens}, {tokens})[0]", v.c
    else:
        d = 1 + b.below(3)
        split = f".unflatten(-1, (3, -1, {d})).permute(2, 0, 3, 1, 4)"
        width = d * count
        attend = b.one_of("F.scaled_dot_product_attention(*{})", "(lambda q, k, v: (q @ k.mT).softmax(-1) @ v)(*{})")
        mixed = attend.format(f"{b.own(f'nn.Linear({v.c}, {3 * width})')}({tokens}){split}")
        mixed = f"{b.own(f'nn.Linear({width}, {o})')}({mixed}.transpose(1, 2).flatten(2))"
    return b.let(f"{mixed}.transpose(1, 2).unflatten(2, ({v.s}, {v.s}))", o, v.s, fresh=True)


def activation(b: Builder) -> bool:
    writable = b.pool[-1].fresh
    v = b.any()
    in_place = (f"F.relu_({v.name})", f"nn.SiLU(inplace=True)({v.name})", f"{v.name}.mul_(0.5)")
    plain = [f"{f}({v.name})" for f in ("F.relu", "F.hardswish", "torch.tanh", "F.gelu", "F.leaky_relu")]
    plain.append(f"{b.own(f'nn.PReLU({v.c})')}({v.name})" if b.below(8) == 7 else f"torch.sigmoid({v.name})")
    options = in_place if writable and v is b.pool[-1] and b.below(2) else plain
    return b.let(b.one_of(*options), v.c, v.s)


def add(b: Builder) -> bool:
    v = b.any()
    w = b.like(v).name
    n = v.name
    expression = b.one_of(
        f"{n} + {w}", f"{n} + {w}", f"{n} - {w}", f"torch.maximum({n}, {w})", f"torch.stack([{n}, {w}]).sum(0)",
        f"torch.where({n} > 0, {n}, {w})", f"sum([{n}, {w}, {n}])", f"{n}.clone().add_({w})",
        f"{w} + F.relu({n}.flip(1))",
    )  # fmt: skip
    return b.let(expression, v.c, v.s, fresh=" + " in expression or " - " in expression)


def gate(b: Builder) -> bool:
    v = b.any()
    kind = b.below(4)
    if kind == 0:
        squeeze, excite = b.own(f"nn.Conv2d({v.c}, 4, 1)"), b.own(f"nn.Conv2d(4, {v.c}, 1)")
        by = f"torch.sigmoid({excite}(F.relu({squeeze}(F.adaptive_avg_pool2d({v.name}, 1)))))"
    elif kind == 1:
        by = f"torch.sigmoid({b.own(f'nn.Conv2d({v.c}, 1, 1)')}({v.name}))"
    elif kind == 2:
        by = f"torch.tanh({b.like(v).name})"
    else:
        by = f"torch.sigmoid({b.own(f'nn.Linear({v.c}, {v.c})')}({v.name}.mean((2, 3))))[:, :, None, None]"
    return b.let(f"{v.name} * {by}", v.c, v.s)


def concat(b: Builder) -> bool:
    v = b.any()
    w = b.take(lambda w: v.c + w.c <= MOST_CHANNELS)
    if w is None:
        return False
    other = w.name if w.s == v.s else f"F.interpolate({w.name}, size={v.s})"
    if b.below(4) == 3:
        n = v.name
        b.body.append(f"filled = {n}.new_zeros({n}.shape[0], {n}.shape[1] + {w.name}.shape[1], {v.s}, {v.s})")
        b.body += [f"filled[:, :{n}.shape[1]] = {n}", f"filled[:, {n}.shape[1]:] = {other}"]
        return b.let("filled", v.c + w.c, v.s)
    return b.let(f"torch.cat([{v.name}, {other}], 1)", v.c + w.c, v.s, fresh=True)


def resize(b: Builder) -> bool:
    v = b.take(lambda v: v.s >= 4)
    if v is None:
        return False
    n, half = v.name, v.s // 2
    expression, s = (
        (f"F.max_pool2d({n}, 2)", half), (f"F.avg_pool2d({n}, 2)", half), (f"F.adaptive_avg_pool2d({n}, 2)", 2),
        (f"F.interpolate({n}, scale_factor=0.5, mode='bilinear')", half), (f"{n}[:, :, ::2, ::2]", (v.s + 1) // 2),
        (f"F.pad({n}, (1, 0, 1, 0))[:, :, :{v.s}, :{v.s}]", v.s), (f"F.adaptive_max_pool2d({n}, {half})", half),
        (f"F.interpolate({n}, size=8)", 8),
    )[b.below(8)]  # fmt: skip
    return b.let(expression, v.c, s)


def rearrange(b: Builder) -> bool:
    """Views over the channels; some with the width written out, some that read it from the tensor."""
    v = b.take(lambda v: v.c % 2 == 0)
    if v is None:
        return False
    n, c, s = v.name, v.c, v.s
    o = b.width()
    linear = b.own(f"nn.Linear({c}, {o})")
    expression, width = (
        (f"{linear}({n}.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)", o),
        (f"{linear}({n}.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, ({s}, {s}))", o),
        (f"{linear}({n}.flatten(2).mT).mT.reshape(-1, {o}, {s}, {s})", o),
        (f"F.channel_shuffle({n}, 2)", c),
        (f"{n}.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)", c),
        (f"{n}.view(-1, 2, {c // 2}, {s}, {s}).sum(1)", c // 2),
        (f"{n}.unflatten(1, (-1, 2)).amax(2)", c // 2),
        (f"{n}.roll(1, 1)", c),
        (f"F.glu({n}, 1)", c // 2),
        (f"torch.einsum('nchw,oc->nohw', {n}, {b.parameter(o, c)})", o),
        (f"{n}.flatten(2).softmax(2).view_as({n})", c),
        (f"{n} - {n}.mean(1, keepdim=True)", c),
        (f"{n}.flatten(2).view(-1, {b.own(f'{c}')}, {s}, {s})", c),
    )[b.below(13)]  # fmt: skip
    return b.let(expression, width, s)


def split(b: Builder) -> bool:
    """Two parts of the channels: halves by their number, or sizes written out or kept as attributes."""
    v = b.take(lambda v: v.c >= 4)
    if v is None:
        return False
    n, c = v.name, v.c
    left = c // 2 if b.below(2) == 0 else 2
    if left * 2 == c:
        how = b.one_of(
            f"{n}.chunk(2, 1)", f"{n}.tensor_split(2, 1)", f"{n}.split({n}.shape[1] // 2, 1)",
            f"{n}.split({b.own(f'{c}')} // 2, 1)", f"{n}.split({b.own(f'[{left}, {left}]')}, 1)",
        )  # fmt: skip
    else:
        first = b.own(f"{left}")
        how = b.one_of(
            f"{n}.split([{left}, {c - left}], 1)", f"({n}[:, :{left}], {n}[:, {left}:])",
            f"{n}.split({b.own(f'({left}, {c - left})')}, 1)", f"({n}[:, :{first}], {n}[:, {first}:])",
        )  # fmt: skip
        b.init.append(f"self.classes = {left}  # as large by chance")
    b.body.append(f"one, two = {how}")
    joined = b.below(4) if left * 2 == c else 0
    if joined == 2:
        return b.let("one * torch.sigmoid(two)", left, v.s)
    if joined == 3:
        return b.let("torch.cat([one, F.relu(two)], 1)", c, v.s)
    return b.let("one", left, v.s) and b.let("two", c - left, v.s)


def select(b: Builder) -> bool:
    v = b.take(lambda v: v.c >= 4)
    if v is None:
        return False
    n, c = v.name, v.c
    expression, width = (
        (f"{n}[:, ::2]", (c + 1) // 2), (f"{n}[:, :{c - 1}]", c - 1), (f"{n}[:, 1:]", c - 1), (f"{n}[:, -3:]", 3),
        (f"{n}[:, [2, 0, 1]]", 3), (f"{n}.narrow(1, 1, 2)", 2), (f"{n}[:, :{n}.shape[1] // 2]", c // 2),
        (f"F.pad({n}, (0, 0, 0, 0, 1, 1))", c + 2),
    )[b.below(8)]  # fmt: skip
    return b.let(expression, width, v.s)


def shuffle(b: Builder) -> bool:
    v = b.take(lambda v: v.c % 4 == 0 and 2 * v.s <= LARGEST)
    if v is not None and b.below(3) < 2:
        return b.let(f"F.pixel_shuffle({v.name}, 2)", v.c // 4, 2 * v.s)
    v = b.take(lambda v: v.s % 2 == 0 and 4 * v.c <= MOST_CHANNELS)
    return v is not None and b.let(f"F.pixel_unshuffle({v.name}, 2)", 4 * v.c, v.s // 2)


def again(b: Builder) -> bool:
    """A convolution that was used before: the module itself, one tied to it, or its weight alone."""
    if not b.convs:
        return False
    m, i, o, k = b.convs[-1 - b.below(len(b.convs))]
    v = b.take(lambda v: v.c == i)
    if v is None:
        return False
    kind = b.below(3)
    if kind == 1:
        tied = b.own(f"nn.Conv2d({i}, {o}, {k}, padding={k // 2})")
        b.init.append(f"{tied}.weight = {m}.weight")
        m = tied
    call = f"F.conv2d({v.name}, {m}.weight, padding={k // 2})" if kind == 2 else f"{m}({v.name})"
    return b.let(call, o, v.s, fresh=True)


def bare(b: Builder) -> bool:
    """A parameter or buffer without a module of its own."""
    v = b.any()
    n, c, s = v.name, v.c, v.s
    kind = b.below(5)
    if kind == 4:
        b.init.append(f"self.register_buffer('table{len(b.init)}', torch.randn({c}, 1, 1))")
        return b.let(f"{n} + self.table{len(b.init) - 1}", c, s, fresh=True)
    shape = ((c, 1, 1), (c,), (1, c, 1, 1), (1, c, s, s))[kind]
    p = b.parameter(*shape)
    return b.let(f"{n} {b.one_of('*', '+')} {p}{'[:, None, None]' if kind == 1 else ''}", c, s)


def head(b: Builder, v: Value) -> str:
    n, c, area = v.name, v.c, v.s * v.s
    kind = b.below(7)
    if kind == 5:
        return f"F.linear({n}.amax((2, 3)), {b.parameter(3, c)})"
    if kind == 4:
        return f"{b.own('nn.Linear(6, 3)')}(F.relu({b.own(f'nn.Linear({c}, 6)')}({n}.mean((2, 3)))))"
    if kind == 3:
        return f"{b.own(f'nn.Linear({c * area}, 3)')}({n}.permute(0, 2, 3, 1).flatten(1))"
    if kind == 2:
        return f"{b.own(f'nn.Conv2d({c}, 2, 1)')}({n})"
    if kind == 1:
        return f"{b.own(f'nn.Linear({c * area}, 3)')}({n}.flatten(1))"
    return f"{b.own(f'nn.Linear({c}, 3)')}({n}.mean((2, 3)))"


def finish(b: Builder) -> None:
    """One to three outputs, one of which may exist in training only."""
    several, training = b.below(4), b.below(4)
    b.body.append(f"out = [{head(b, b.pool[-1])}]")
    if several in (1, 2) and (v := b.any()):
        b.body.append(f"out.append({v.name if several == 1 else head(b, v)})")
    if training == 3 and (v := b.any()):
        side = b.own(f"nn.Conv2d({v.c}, 4, 1)")
        b.body += [
            "if self.training:",
            f"    out.append({b.own('nn.Linear(4, 2)')}({side}({v.name}).relu().mean((2, 3))))",
        ]


STEPS: tuple[Callable[[Builder], bool], ...] = (
    conv, activation, norm, add, conv, activation, norm, conv, concat, resize, gate, grouped, transposed, again, bare,
    split, shuffle, select, rearrange, conv, activation, norm, add, conv, heads,
)  # fmt: skip
