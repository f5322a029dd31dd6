"""Fits of random LightningModules: the scores right, the removals exact, the resume bit-equal; or refused in words.

``python tests/campaigns/random_modules.py --count 1000 --seed 1 --out FILE`` writes a line of JSON for each module, and
goes on where it left off; ``--only SEED`` repeats one and prints all that it says.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

import lightning as L
import torch
import torch.nn.functional as F
from fit.boring import trainer
from fit.harness import Recording
from fit.resuming import StatefulLoader, differences
from surgery.reference import lost, mask, without, zero
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from campaigns.learners import APART, CLASSES, PACKINGS, SIDE, Learner, Recipe, build
from lightning_taylor import Gradual, Taylor, TaylorBatch, TaylorPruning
from lightning_taylor.errors import PruningError
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.graph.types import Role
from lightning_taylor.report import html

BATCHES, SAVED = 9, 5
SCHEDULE = Gradual(every_n_steps=3, start_step=1, end_step=7)
SCORES, EXACT = 1e-4, 1e-8
READERS = {F.conv2d, F.linear}


class Kept(Recording):
    """Goes by the name of the criterion that it records, or a resumed fit would not trust the scores so far."""

    def __repr__(self) -> str:
        return repr(self.inner)


class Loader(StatefulLoader):
    """Batches of a learner."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(0)
        generator = torch.Generator().manual_seed(7)
        for i in range(BATCHES):
            size = 6 if recipe.sizes == "even" else (6, 5, 7)[i % 3]
            x = torch.randn(size, 3, SIDE, SIDE, generator=generator)
            y = torch.randint(CLASSES, (size,), generator=generator)
            # Of the traced batch a filter may leave out the first example, but never all.
            y[:2] = torch.tensor([2 if i == 0 and recipe.sizes == "uneven" else 0, 1])
            x[1, 0, 0] = 1.0
            x = x.double() if recipe.double else x
            self.data.append(PACKINGS[recipe.batch](torch.tensor(1.0), x, y))


class Gates(TorchFunctionMode):
    """Multiplies what a weight reads by a gate of one for every example and channel: its gradient is the contribution.

    The weights are told by what they are, so it does not matter who calls which function with them.
    """

    def __init__(self, learner: Learner, examples: int) -> None:
        super().__init__()
        self.learner, self.examples = learner, examples
        self.weights = {id(p): name for name, p in learner.named_parameters()}
        self.gates: list[tuple[str, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = self.weights.get(id(args[1])) if func in READERS else None
        if name is not None and torch.is_grad_enabled() and args[0].requires_grad:
            x, *others = args
            gate = torch.ones(3 * APART, x.shape[1], dtype=x.dtype, requires_grad=True)
            self.gates.append((name, gate))
            opened = gate[self.learner.rows]
            args = (x * opened.reshape(*opened.shape, *[1] * (x.ndim - 2)), *others)
        return func(*args, **(kwargs or {}))

    def __deepcopy__(self, memo: Any) -> Any:
        return nullcontext()  # on the copy that is traced

    def take(self) -> dict[str, Tensor]:
        """Weight -> what each of its input channels contributed to the last objective, shape ``(N, I)``."""
        taken: dict[str, Tensor] = {}
        for name, gate in self.gates:
            if gate.grad is not None:
                taken[name] = taken.get(name, 0) + gate.grad.double()
        self.gates.clear()
        return taken


class Reference:
    """The scores up to the first event, from gates; plain and slow.

    Attributes:
        sums: group -> sum of scores times weights, and of weights.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.squared = recipe.criterion == "TaylorBatch"
        self.frozen = ("judge.",) if self.squared else ()
        self.sums: dict[str, tuple[Tensor | float, float]] = {}

    def add(self, graph: ChannelGraph, contributions: Mapping[str, Tensor], examples: int) -> None:
        """Add one objective, or for squares one step."""
        for name, group in graph.groups.items():
            readers = [s for s in group.of(Role.CONSUMER) if s.tensor in contributions]
            if not readers or (self.frozen and any(s.tensor.startswith(self.frozen) for s in readers)):
                continue
            each = sum(torch.stack([contributions[s.tensor][:, i].sum(1) for i in s.index]) for s in readers)
            assert isinstance(each, Tensor)
            score, weight = (each.sum(1).square(), 1) if self.squared else (each.abs().sum(1), examples)
            total, weights = self.sums.get(name, (0.0, 0.0))
            self.sums[name] = total + score * weight, weights + weight

    def scores(self) -> dict[str, Tensor]:
        """Return the mean."""
        return {name: total / weights for name, (total, weights) in self.sums.items()}


class Watch(L.Callback):
    """Comes before the pruner, to see each batch before anything is removed."""

    def __init__(self, recipe: Recipe, pruner: TaylorPruning) -> None:
        self.recipe, self.pruner = recipe, pruner
        self.reference = Reference(recipe)
        self.gates: Gates | None = None
        self.steps: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        graph, self.batch, self.steps = self.pruner.graph, batch, []
        if graph is None or not self.pruner._session.pruner.record.events:
            x = batch[0] if isinstance(batch, list) else batch["x"] if isinstance(batch, dict) else batch.x
            pl_module.observer = self.gates = Gates(pl_module, len(x))

    def on_after_backward(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self.gates is not None:
            self.steps.append(self.gates.take())

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        graph = self.pruner.graph
        # The first batch goes to the trace; of its gradients what is left then counts for who reads only those.
        late = batch_idx == 0 and not (self.reference.squared and pl_module.automatic_optimization)
        if self.gates is not None and graph is not None and not late:
            if self.reference.squared:
                self.steps = [self.stepped(trainer, pl_module, self.steps)]
            for contributions in self.steps:
                self.reference.add(graph, contributions, self.gates.examples)
        self.gates, pl_module.observer = None, nullcontext()
        self.graph = graph
        # Not as a dict, which the pruner would take for an average, and prune along.
        self.state = MappingProxyType({name: t.detach().clone() for name, t in pl_module.state_dict().items()})
        self.optimizers = [plain(optimizer.state_dict()) for optimizer in trainer.optimizers]

    @staticmethod
    def stepped(trainer: L.Trainer, module: nn.Module, objectives: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """What each weight read in the objective that its optimizer stepped for."""
        if len(objectives) == 1:
            return objectives[0]
        owner = {id(p): i for i, o in enumerate(trainer.optimizers) for g in o.param_groups for p in g["params"]}
        which = {name: owner[id(p)] for name, p in module.named_parameters() if id(p) in owner}
        return {
            name: value for i, seen in enumerate(objectives) for name, value in seen.items() if which.get(name) == i
        }


class Judge(L.Callback):
    """Comes after the pruner: compares what is left after an event with the masked twin."""

    def __init__(self, watch: Watch, pruner: TaylorPruning) -> None:
        self.watch, self.pruner = watch, pruner
        self.events = 0
        self.apart: dict[str, float] = {}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        if self.pruner.graph is None:
            return
        events = self.pruner._session.pruner.record.events
        if len(events) == self.events:
            return
        self.events = len(events)
        graph = self.watch.graph
        assert graph is not None
        remove = {name: torch.tensor(gone) for name, gone in events[-1].removed.items()}
        if not any(map(len, remove.values())):
            return
        with torch.random.fork_rng(devices=[]):
            apart = compare(self.watch, pl_module, graph, remove, [plain(o.state_dict()) for o in trainer.optimizers])
        self.apart.update({f"{name} at event {self.events}": value for name, value in apart.items() if value > EXACT})


def plain(state: Any) -> Any:
    """A copy of an optimizer's state."""
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, dict):
        return {key: plain(value) for key, value in state.items()}
    return [plain(value) for value in state] if isinstance(state, list) else state


def revived(recipe: Recipe, state: Mapping[str, Tensor]) -> Learner:
    """A learner of that state in double precision, at whatever widths it has, without dropout."""
    learner = build(recipe)
    for name, tensor in [*learner.named_parameters(), *learner.named_buffers()]:
        tensor.data = state[name].to(torch.float64 if tensor.is_floating_point() else tensor.dtype, copy=True)
    for module in learner.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            module.groups = len(module.weight)
    learner.dropout = 0.0
    return learner.train()


def compare(
    watch: Watch, module: Learner, graph: ChannelGraph, remove: dict[str, Tensor], states: list[Any]
) -> dict[str, float]:
    """How far the smaller learner and the masked twin are apart: before a step, in the step, after it."""
    recipe, batch = watch.recipe, cast(watch.batch)
    gone, read = lost(graph, remove), lost(graph, remove, Role.CONSUMER, Role.QUERY, Role.KEY, Role.COPY)
    twin, small = revived(recipe, watch.state), revived(recipe, dict(module.state_dict()))
    mask(twin, read)
    apart = {"loss": difference(twin, small, batch), "outputs": outputs_apart(twin, small, batch)}
    for learner, saved, reading in ((twin, watch.optimizers, read), (small, states, {})):
        if recipe.teacher == "momentum after":
            learner.follow()
        mask(learner, reading)
        step(learner, saved, batch, reading)
    here = dict(small.state_dict())
    there = {name: without(t, gone.get(name, {})) for name, t in twin.state_dict().items()}
    scale = max(float(t.abs().max()) for t in there.values())
    apart["weights"] = max(float((here[n].double() - t.double()).abs().max()) / scale for n, t in there.items())
    apart["next loss"] = difference(twin, small, batch)
    return apart


def step(learner: Learner, saved: list[Any], batch: Any, read: Any) -> None:
    """One optimizer step for each objective; what nobody reads stays at zero."""
    optimizers = learner.configure_optimizers()
    for optimizer, state in zip(optimizers, saved, strict=True):
        optimizer.load_state_dict(state)
    apart = learner.recipe.optimization == "two objectives"
    for i, together in enumerate([[o] for o in optimizers] if apart else [optimizers]):
        loss = learner.aside(batch) if i else learner.loss(batch)
        for optimizer in together:
            optimizer.zero_grad()
        loss.backward()
        for name, entries in read.items():
            if (grad := learner.get_parameter(name).grad) is not None:
                zero(grad, entries)
        for optimizer in together:
            optimizer.step()
        mask(learner, read)


def difference(twin: Learner, small: Learner, batch: Any) -> float:
    """How far the losses are apart, relative to them; both learners are left as they are."""
    losses = []
    for learner in (twin, small):
        state = {name: t.clone() for name, t in learner.state_dict().items()}
        with torch.no_grad():
            losses.append(float(learner.loss(batch)))
        learner.load_state_dict(state)
    return abs(losses[0] - losses[1]) / abs(losses[0])


def outputs_apart(twin: Learner, small: Learner, batch: Any) -> float:
    """How far what both make of the images is apart, in evaluation mode."""
    x = batch[0] if isinstance(batch, list) else batch["x"] if isinstance(batch, dict) else batch.x
    with torch.no_grad():
        one, other = (learner.eval().finish(learner.encoder(x)) for learner in (twin, small))
    twin.train(), small.train()
    return float((one - other).abs().max() / one.abs().max())


def cast(batch: Any) -> Any:
    """The batch in double precision."""
    to = {True: lambda t: t.double(), False: lambda t: t}
    if isinstance(batch, list):
        return [to[t.is_floating_point()](t) for t in batch]
    names = batch if isinstance(batch, dict) else ("weight", "x", "y")
    values = {
        n: to[t.is_floating_point()](t)
        for n in names
        for t in [batch[n] if isinstance(batch, dict) else getattr(batch, n)]
    }
    return values if isinstance(batch, dict) else type(batch)(**values)


def fit(recipe: Recipe, folder: Path, resume: Path | None = None) -> dict[str, Any]:
    """One fit, watched unless it goes on from a checkpoint; what it learnt, and what was seen."""
    module = build(recipe)
    criterion = Kept(Taylor() if recipe.criterion == "Taylor" else TaylorBatch())
    pruner = TaylorPruning(0.7, SCHEDULE, criterion, "none", measure_latency=False, round_to=1)
    watch = Watch(recipe, pruner)
    judge = Judge(watch, pruner)
    callbacks: list[L.Callback] = [pruner] if resume else [watch, pruner, judge]
    options = {"max_epochs": 1, "default_root_dir": folder, "enable_checkpointing": True}
    torch.manual_seed(1)
    run = trainer(callbacks, **options)
    if not resume:
        # After the module's own hook, which comes after those of the callbacks.
        path = folder / "saved.ckpt"
        module.finally_do = lambda batch_idx: run.save_checkpoint(path) if batch_idx + 1 == SAVED else None
    run.fit(module, Loader(recipe), ckpt_path=resume, weights_only=True if resume else None)
    learnt = {"model": dict(module.state_dict()), "optimizers": [o.state_dict()["state"] for o in run.optimizers]}
    return {
        "learnt": {**learnt, "random": torch.get_rng_state()},
        "reached": pruner.reached,
        "scores": criterion.seen[0] if criterion.seen else {},
        "reference": watch.reference.scores(),
        "apart": judge.apart,
        "events": judge.events,
    }


def wrong_scores(scores: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> dict[str, float]:
    """Group -> how far its scores are off, relative to the largest; those that are right are left out."""
    off = {name: float("inf") for name in scores.keys() ^ reference.keys()}
    for name in scores.keys() & reference.keys():
        want = reference[name]
        off[name] = float((scores[name].double() - want).abs().max() / want.abs().max().clamp(min=1e-300))
    return {name: round(value, 6) for name, value in off.items() if not value < SCORES}


def verdict(seed: int, campaign: int) -> dict[str, Any]:
    """What became of one module: "right", "refused", "missed", "wrong" or "crashed", and why."""
    return judged(Recipe.draw(seed, campaign))


def judged(recipe: Recipe) -> dict[str, Any]:
    """What becomes of a learner of that recipe."""
    began = time.monotonic()
    quiet = redirect_stdout(io.StringIO()), mock.patch.object(html, "figures", return_value={})
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings(record=True) as caught, quiet[0], quiet[1]:
        warnings.simplefilter("always")
        folder = Path(name)
        try:
            whole = fit(recipe, folder)
            parts = fit(recipe, folder, folder / "saved.ckpt")
        except PruningError as error:
            row = {"status": "refused", "why": f"{type(error).__name__}: {str(error)[:300]}"}
        except Exception as error:
            row = {
                "status": "crashed",
                "why": f"{type(error).__name__}: {str(error)[:300]}",
                "where": traceback.format_exc(),
            }
        else:
            why = {
                # Whose rows those are nobody can tell: what several layers read of them is not added up.
                "scores": {} if recipe.filtered == "rows" else wrong_scores(whole["scores"], whole["reference"]),
                "apart": whole["apart"],
                "resume": differences(whole["learnt"], parts["learnt"]),
            }
            why = {key: value for key, value in why.items() if value}
            row = {"status": "wrong" if why else "right" if whole["reached"] else "missed", "why": why}
    ours = sorted(
        {str(w.message)[:200] for w in caught if "TaylorPruning" in str(w.message) or "trace" in str(w.message)}
    )
    return {**row, "recipe": recipe.told(), "warnings": ours, "seconds": round(time.monotonic() - began, 2)}


def campaign(seeds: Iterable[int], number: int, out: Path | None) -> Counter[str]:
    """Judge modules, and write a line for each that is not in the file yet."""
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out and out.exists() else []
    done = {row["seed"] for row in rows}
    kinds = Counter(row["status"] for row in rows)
    for seed in seeds:
        if seed in done:
            continue
        row = {"seed": seed, **verdict(seed, number)}
        kinds[row["status"]] += 1
        if out:
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")
        if row["status"] in ("wrong", "crashed"):
            print(f"--only {seed}: {row['status']}: {row['why']}\n    {row['recipe']}", flush=True)
    return kinds


def main(arguments: list[str] | None = None) -> bool:
    """Run the campaign; whether nothing was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1, help="number of the campaign")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", type=int, help="repeat one module")
    parser.add_argument("--out", type=Path, help="lines of JSON; those that are there already are not repeated")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.only is not None:
        row = verdict(options.only, options.seed)
        for key, value in row.items():
            print(f"{key}: {value}")
        return row["status"] not in ("wrong", "crashed")
    kinds = campaign(range(options.first, options.first + options.count), options.seed, options.out)
    print(dict(kinds))
    return not kinds["wrong"] + kinds["crashed"]


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    sys.exit(not main())
