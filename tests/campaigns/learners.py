"""Random LightningModules as people write them: what the step does with parts, views, teachers, hooks and batches.

A recipe is drawn from a seed. Beside its work a learner notes in ``rows`` which example each row of the present maps
belongs to; only the reference for the scores reads that.
"""

from __future__ import annotations

import copy
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from random import Random
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE, CLASSES, OUT = 6, 3, 5
APART = 100
"""Added to the numbers of rows that a mask chose among features: nobody can tell whose they are; they count apart."""

CHOICES: dict[str, tuple[Any, ...]] = {
    "blocks": ("plain", "residual", "concat", "rezero", "shared", "functional", "separable"),
    "width": (4, 6),
    "norm": (False, False, True),
    "flatten": (False, False, True),
    "dropout": (0.0, 0.0, 0.2),
    "parts": ("self", "forward", "apart", "apart without forward"),
    "batch": ("list", "dict", "dataclass", "tuple"),
    "sizes": ("even", "uneven"),
    "views": ("one", "one", "cat", "view-major", "example-major", "two calls"),
    "chunks": (1, 1, 1, 2, 4),
    "filtered": ("all", "all", "all", "images", "rows", "features"),
    "features": ("none", "none", "hook mean", "hook probe", "attribute mean", "attribute probe"),
    "teacher": ("none", "none", "frozen", "momentum in step", "momentum after", "predicted"),
    "judge": (False, False, True),
    "consistency": (False, True),
    "optimization": ("automatic", "automatic", "one by hand", "two by hand", "two objectives"),
    "optimizer": ("SGD", "momentum", "Adam", "AdamW"),
    "criterion": ("Taylor", "Taylor", "TaylorBatch"),
    "double": (True, True, False),
}


@dataclass(frozen=True)
class Recipe:
    """What a learner is made of; the names are those of ``CHOICES``."""

    blocks: tuple[str, ...] = ("plain",)
    width: int = 4
    norm: bool = False
    flatten: bool = False
    dropout: float = 0.0
    parts: str = "self"
    batch: str = "list"
    sizes: str = "even"
    views: str = "one"
    chunks: int = 1
    filtered: str = "all"
    features: str = "none"
    teacher: str = "none"
    judge: bool = False
    consistency: bool = False
    optimization: str = "automatic"
    optimizer: str = "SGD"
    criterion: str = "Taylor"
    double: bool = True

    @staticmethod
    def draw(seed: int, campaign: int = 1) -> Recipe:
        """Draw one."""
        random = Random(f"{campaign} {seed}")
        drawn = {name: random.choice(values) for name, values in CHOICES.items()}
        drawn["blocks"] = tuple(random.choice(CHOICES["blocks"]) for _ in range(random.randint(1, 2)))
        return Recipe(**drawn)

    def told(self) -> dict[str, Any]:
        """Return what is not as in the simplest learner, for a line of a report."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}


class Block(nn.Module):
    """A few layers from maps to maps of one width."""

    def __init__(self, kind: str, width: int, norm: bool) -> None:
        super().__init__()
        self.kind = kind
        self.one = nn.Conv2d(width, width, 3, padding=1, bias=not norm)
        self.norm = nn.BatchNorm2d(width) if norm else nn.Identity()
        if kind in ("residual", "rezero", "separable"):
            self.two = nn.Conv2d(width, width, 3, padding=1)
        if kind == "concat":
            self.two = nn.Conv2d(2 * width, width, 1)
        if kind == "separable":
            self.each = nn.Conv2d(width, width, 3, padding=1, groups=width)
        if kind == "rezero":
            self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.one(x)).relu()
        match self.kind:
            case "residual":
                return x + self.two(y)
            case "rezero":
                return x + self.gate * self.two(y)
            case "concat":
                return self.two(torch.cat([x, y], 1))
            case "separable":
                return self.two(self.each(y)).relu()
            case "shared":
                return self.norm(self.one(y)).relu()
            case "functional":
                return (y + F.conv2d(x.flip(3), self.one.weight, padding=1)).relu()
        return y


class Encoder(nn.Module):
    """A stem and blocks; what the stem makes stays in an attribute, if asked for."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, recipe.width, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(kind, recipe.width, recipe.norm) for kind in recipe.blocks))
        self.flatten, self.keeps = recipe.flatten, recipe.features.startswith("attribute")
        self.maps: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        maps = self.stem(x)
        if self.keeps:
            self.maps = maps
        maps = self.blocks(maps.relu())
        return F.avg_pool2d(maps, 2).flatten(1) if self.flatten else maps.mean((2, 3))


@dataclass
class Batch:
    """A batch as an object, with a number first."""

    weight: Tensor
    x: Tensor
    y: Tensor


Weighted = namedtuple("Weighted", "weight x y")
PACKINGS: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "list": lambda weight, x, y: [x, y],
    "dict": lambda weight, x, y: {"weight": weight, "x": x, "y": y},
    "dataclass": Batch,
    "tuple": Weighted,
}


def unpack(batch: Any) -> tuple[Tensor, Tensor]:
    """Images and classes of a batch of any kind."""
    if isinstance(batch, list):
        return batch[0], batch[1]
    return (batch["x"], batch["y"]) if isinstance(batch, dict) else (batch.x, batch.y)


@dataclass
class Rows:
    """Rows of images, their classes, and the examples that they belong to."""

    x: Tensor
    y: Tensor
    owner: Tensor

    def where(self, keep: Tensor) -> Rows:
        return Rows(self.x[keep], self.y[keep], self.owner[keep])


def viewed(rows: Rows, kind: str) -> list[Rows]:
    """What the network is called with: the images, or views of them."""
    x, y, owner = rows.x, rows.y, rows.owner
    views = [x, x.flip(3)]
    match kind:
        case "cat":
            return [Rows(torch.cat(views), torch.cat([y, y]), owner.repeat(2))]
        case "view-major":
            return [Rows(torch.stack([*views, x.roll(1, 2)]).flatten(0, 1), y.repeat(3), owner.repeat(3))]
        case "example-major":
            joined = torch.stack(views, 1).flatten(0, 1)
            return [Rows(joined, y.repeat_interleave(2), owner.repeat_interleave(2))]
        case "two calls":
            return [Rows(view, y, owner) for view in views]
    return [rows]


def apart(call: Rows, number: int) -> Rows:
    """Whose rows these are nobody can tell: each counts as an example of its own."""
    return Rows(call.x, call.y, torch.arange(len(call.x)) + APART * (number + 1))


def disagreement(outs: list[Tensor], views: str) -> Tensor:
    """How much what comes out for the views of an image varies."""
    match views:
        case "cat":
            return F.mse_loss(*outs[0].chunk(2))
        case "view-major":
            return outs[0].unflatten(0, (3, -1)).var(0).mean()
        case "example-major":
            return outs[0].unflatten(0, (-1, 2)).var(1).mean()
        case "two calls":
            return F.mse_loss(*outs)
    return outs[0].pow(2).mean()


class Learner(L.LightningModule):
    """An encoder and a head, and a step that the recipe says."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe, self.dropout = recipe, recipe.dropout
        self.automatic_optimization = recipe.optimization == "automatic"
        wide = recipe.width * (SIDE // 2) ** 2 if recipe.flatten else recipe.width
        self.encoder = Encoder(recipe)
        self.neck, self.head = nn.Linear(wide, 6), nn.Linear(6, OUT)
        self.f: dict[str, Tensor] = {}
        if recipe.features.startswith("hook"):
            self.encoder.stem.register_forward_hook(lambda module, args, out: self.f.update(maps=out))
        if recipe.features.endswith("probe"):
            self.probe = nn.Linear(recipe.width, CLASSES)
        if recipe.teacher == "frozen":
            flat = 10 * (SIDE - 2) ** 2
            self.teacher = nn.Sequential(nn.Conv2d(3, 10, 3), nn.ReLU(), nn.Flatten(), nn.Linear(flat, OUT))
            self.teacher.requires_grad_(False)
        elif recipe.teacher != "none":
            self.slow = copy.deepcopy(self.encoder).requires_grad_(False)
            self.predictor = nn.Linear(wide, wide) if recipe.teacher == "predicted" else nn.Identity()
        if recipe.judge:
            self.judge = nn.Sequential(nn.Linear(OUT, 12), nn.ReLU(), nn.Linear(12, 3)).requires_grad_(False)
        self.rows = torch.arange(0)
        self.observer: AbstractContextManager[Any] = nullcontext()
        self.finally_do: Callable[[int], None] = lambda batch_idx: None

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(self.encoder(x))

    def finish(self, features: Tensor) -> Tensor:
        return self.head(F.dropout(self.neck(features).relu(), self.dropout, self.training))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        with self.observer:
            if self.automatic_optimization:
                return self.loss(batch)
            optimizers = self.optimizers()
            optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
            apart = self.recipe.optimization == "two objectives"
            for i, together in enumerate([[o] for o in optimizers] if apart else [optimizers]):
                loss = self.aside(batch) if i else self.loss(batch)
                for optimizer in together:
                    optimizer.zero_grad()
                self.manual_backward(loss)
                for optimizer in together:
                    optimizer.step()
        return None if apart else loss.detach()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.recipe.teacher == "momentum after":
            self.follow()
        self.finally_do(batch_idx)

    def follow(self) -> None:
        """Let the slow encoder come a little closer."""
        with torch.no_grad():
            for fast, slow in zip(self.encoder.parameters(), self.slow.parameters(), strict=True):
                slow.mul_(0.9).add_(fast, alpha=0.1)

    def aside(self, batch: Any) -> Tensor:
        """The second objective."""
        x, _ = unpack(batch)
        self.rows = torch.arange(len(x))
        return self.finish(self.encoder(x)).pow(2).mean()

    def loss(self, batch: Any) -> Tensor:
        """The first, or only objective."""
        recipe = self.recipe
        x, y = unpack(batch)
        rows = Rows(x, y, torch.arange(len(x)))
        if recipe.filtered == "images":
            rows = rows.where(y < 2)
        calls = viewed(rows, recipe.views)
        if recipe.filtered == "rows":
            calls = [apart(call.where(call.x[:, 0, 0, 0] > -0.7), i) for i, call in enumerate(calls)]
        outs, loss = [], torch.zeros((), dtype=x.dtype)
        self.looks: list[Tensor] = []
        self.apart = 0 if bool((y < 2).all()) else APART
        for call in calls:
            out, call = self.run(call)
            self.first = self.first if outs else torch.cat(self.last)
            outs.append(out)
            loss = loss + F.cross_entropy(out[:, :CLASSES], call.y)
            if recipe.teacher == "frozen":
                with torch.no_grad():
                    target = self.teacher(call.x)
                loss = loss + F.mse_loss(out, target)
        if recipe.consistency and recipe.filtered in ("all", "images"):
            loss = loss + disagreement(outs, recipe.views)
        return loss + sum(self.more(rows, outs))

    def run(self, call: Rows) -> tuple[Tensor, Rows]:
        """Run the network on rows, in chunks perhaps; what comes out, and of which rows."""
        outs, rows, self.last = [], [], []
        for part in torch.arange(len(call.x)).chunk(self.recipe.chunks):
            out, chunk = self.run_chunk(call.where(part))
            outs.append(out)
            rows.append(chunk)
            self.last.append(self.rows)
        whole = Rows(*(torch.cat([getattr(chunk, f.name) for chunk in rows]) for f in fields(Rows)))
        return (outs[0] if len(outs) == 1 else torch.cat(outs)), whole

    def run_chunk(self, call: Rows) -> tuple[Tensor, Rows]:
        self.rows = call.owner
        if self.recipe.filtered == "features":
            features, keep = self.encoder(call.x), call.y < 2
            self.look()
            self.rows = call.owner[keep] + self.apart
            return self.finish(features[keep]), call.where(keep)
        if self.recipe.parts == "self":
            out = self(call.x)
        elif self.recipe.parts == "forward":
            out = self.forward(call.x)
        else:
            out = self.finish(self.encoder(call.x))
        self.look()
        return out, call

    def look(self) -> None:
        """Make a loss of the features that a hook or an attribute has of the call."""
        recipe = self.recipe
        if recipe.features != "none":
            maps = self.f["maps"] if recipe.features.startswith("hook") else self.encoder.maps
            assert maps is not None
            through = recipe.features.endswith("probe")
            made = self.probe(maps.relu().mean((2, 3))) if through else maps.mean(1)
            self.looks.append(made.pow(2).mean())

    def more(self, rows: Rows, outs: list[Tensor]) -> Iterator[Tensor]:
        """Further losses."""
        recipe = self.recipe
        yield from self.looks
        if recipe.judge:
            self.rows = self.first
            yield self.judge(outs[0]).pow(2).mean()
        if hasattr(self, "slow"):
            if recipe.teacher == "momentum in step":
                self.follow()
            with torch.no_grad():
                target = self.slow(rows.x.flip(2))
            self.rows = rows.owner
            yield F.mse_loss(self.predictor(self.encoder(rows.x)), target)

    def configure_optimizers(self) -> Any:
        parts = [self.trained()]
        if self.recipe.optimization.startswith("two"):
            first = {id(p) for p in (*self.encoder.parameters(), *self.neck.parameters())}
            parts = [[p for p in parts[0] if (id(p) in first) == inside] for inside in (True, False)]
        return [self.optimizer(part) for part in parts]

    def trained(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if p.requires_grad]

    def optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        match self.recipe.optimizer:
            case "SGD":
                return torch.optim.SGD(parameters, 0.02)
            case "momentum":
                return torch.optim.SGD(parameters, 0.01, momentum=0.9)
        # A small eps would magnify the rounding noise of gradients that are nothing else.
        return getattr(torch.optim, self.recipe.optimizer)(parameters, 1e-3, eps=1e-3)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["rng"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.rng = checkpoint["rng"]

    def on_train_start(self) -> None:
        if hasattr(self, "rng"):
            torch.set_rng_state(self.rng)


class WithoutForward(Learner):
    """The same; nobody says what is deployed."""

    forward = L.LightningModule.forward


def build(recipe: Recipe) -> Learner:
    """Return a learner at its dense widths, its weights drawn from one seed."""
    torch.manual_seed(0)
    without = recipe.parts == "apart without forward" or recipe.filtered == "features"
    learner = (WithoutForward if without else Learner)(recipe)
    return learner.double() if recipe.double else learner
