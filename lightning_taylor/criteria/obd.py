"""Optimal brain damage on channels: the second derivative of the loss by a gate, estimated with random probes.

The gates are real here: every layer that reads a channel receives its input times ones, which need a gradient. Before
the user's own backward pass the graph of the loss is differentiated twice, by the gates only; the user's gradients,
the random numbers and the batch-norm statistics are untouched.

Shape legend: C = channels of all groups, N = examples, L = leading entries as a layer saw them, I = its input
channels, P = probes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from lightning_taylor.criteria.base import Criterion, Scorer
from lightning_taylor.criteria.hooked import HookedScorer
from lightning_taylor.errors import UnsupportedModelError
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.scores.accumulator import ChannelSums
from lightning_taylor.scores.formulas import fold_examples
from lightning_taylor.scores.input_hooks import ConsumerHooks
from lightning_taylor.scores.normalize import Normalization
from lightning_taylor.utilities.calls import batch_size
from lightning_taylor.utilities.checks import check_whole
from lightning_taylor.utilities.hooks import Arguments, InputHook, with_input

__all__ = [
    "OBD",
]


@final
class OBD(Criterion):
    r"""Second derivative of the loss by a gate on the channel: what removing it costs where gradients vanish.

    .. math::  \Theta_c = g_c^2 \frac{\partial^2 C}{\partial g_c^2} \Big|_{g = 1}
               \approx \frac{1}{P N} \sum_p \sum_n v_{pnc}\, (H_n v_{pn})_c, \qquad v_{pnc} = \pm 1

    with one gate for each channel at the inputs of all layers that read it, and ``H`` the Hessian of an example's loss
    by the gates. A probe is a product with it, of every example with signs of its own (one backward pass in which all
    examples share, after one that keeps its graph): exact, and without bias; what it measures of the other channels
    is noise that the mean over examples and probes takes out. Where a batch norm in training mode ties examples
    together, what it does is left out.

    Limits. The noise is large: in a network of thousands of channels, hundreds of probes may leave an order that is
    mostly chance (``tests/study/curvature.py`` has none, for classifiers). A ReLU has no curvature of its own: behind
    one gate, a network of ReLUs, max-pooling and batch norms in evaluation mode is piecewise linear, so that the score
    is the Gauss-Newton term, non-negative in expectation, and blind to units that a removal would switch on or off.
    It needs ``backward`` called through Lightning, and every operation on the way twice differentiable: no
    ``torch.compile``, no reentrant checkpointing, and no fused attention (within
    ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`` it has a second derivative).

    Units: of the loss; assumes a mean-reduced loss. Averaged over the examples since the last event, of all ranks;
    signed, so that a noisy estimate may be negative. The 1/2 of the expansion is left out, as in the paper.

    Cost: about 1.1 training steps for each probe, on top of the step itself. Measured on one CPU core (SqueezeNet at
    8 x 128 px, ResNet-18 at 8 x 64 px): a step takes 2.2 and 2.5 times as long with one probe, 11 and 12 times with
    ten; with ``Taylor`` 1.06 and 1.0 times.

    Args:
        probes: P, for each batch. The paper takes 10 for its comparison, and 1 while it prunes.
        seed: of the probes; the same on every rank and after a resume.

    Raises:
        ValueError: for less than one probe, or a seed that is no whole number.
        UnsupportedModelError: in training, if the loss cannot be differentiated twice.

    Source: Molchanov et al. 2017, Eq. 13 and appendix A.6, on a gate for each map rather than on each of its elements.

    Example:
        >>> OBD(probes=10)
        OBD(probes=10, seed=0)
    """

    def __init__(self, probes: int = 1, seed: int = 0) -> None:
        check_whole("probes", probes, at_least=1)
        check_whole("seed", seed)
        self.probes = probes
        self.seed = seed

    @property
    @override
    def default_normalization(self) -> Normalization:
        """It is a change of the loss."""
        return "none"

    @override
    def scorer(self, model: nn.Module, graph: ChannelGraph, *, event: int = 0) -> Scorer:
        """Place a gate on every layer that reads a channel of the graph."""
        return _CurvatureScorer(model, graph, self.probes, f"{self.seed}/{event}")


@final
class _CurvatureScorer(HookedScorer[ConsumerHooks["_Gate"]]):
    def __init__(self, model: nn.Module, graph: ChannelGraph, probes: int, key: str) -> None:
        hooks = ConsumerHooks(model, graph, lambda consumer: _Gate(consumer.module, consumer.width))
        self._matrix = hooks.channel_matrix()
        self._sums = ChannelSums(self._matrix.channels, dtype=self._matrix.dtype, device=hooks.device)
        super().__init__(hooks, self._sums)
        self._channel_of = _channels_of_entries(graph, hooks.consumers, hooks.device)
        self._probes, self._key, self._draws = probes, key, 0
        self._curvatures: list[tuple[Tensor, Tensor]] = []
        self._examples = 1

    @override
    def on_batch(self, batch: Any) -> None:
        self._examples = max(1, batch_size(batch))

    @override
    def on_loss(self, loss: Tensor) -> None:
        calls = [(name, gate_LI) for name, gate in self.hooks.by_layer.items() for gate_LI in gate.calls]
        if not calls or not loss.requires_grad:
            return
        first = _derivatives(loss, calls, create_graph=True)
        if not first:
            return
        # Signs of its own for each example; one for all, if nobody can say which entry belongs to which example.
        divisible = all(len(gate_LI) % self._examples == 0 for _, gate_LI in calls)
        examples = self._examples if divisible else 1
        total_C = torch.zeros(self._matrix.channels, dtype=self._matrix.dtype, device=self._matrix.device)
        for _ in range(self._probes):
            probe_CN = self._draw(examples)
            total_C += (probe_CN * self._hessian_times(probe_CN, first, calls)).sum(1)
        self._curvatures.append((total_C / self._probes, self._matrix.channels_of(calls[place][0] for place in first)))

    def _hessian_times(self, probe_CN: Tensor, first: dict[int, Tensor], calls: list[tuple[str, Tensor]]) -> Tensor:
        """Shape ``(C, N)``: the derivative of the gates' gradient in the direction of a probe."""
        examples = probe_CN.shape[1]
        padded_NC = F.pad(probe_CN.t(), (0, 1))  # entries that belong to no channel stay
        slope = 0.0
        for place, grad_LI in first.items():
            direction_NI = padded_NC[:, self._channel_of[calls[place][0]]].to(grad_LI.dtype)
            slope = slope + (grad_LI * direction_NI.repeat_interleave(len(grad_LI) // examples, 0)).sum()
        assert isinstance(slope, Tensor)
        if not slope.requires_grad:  # the loss is linear in every gate
            return torch.zeros_like(probe_CN)
        entries: dict[str, Tensor] = {}
        for place, second_LI in _derivatives(slope, calls, create_graph=False).items():
            name, second_NI = calls[place][0], fold_examples(second_LI, examples)
            entries[name] = entries[name] + second_NI if name in entries else second_NI
        return self._matrix(entries, examples)

    def _draw(self, examples: int) -> Tensor:
        self._draws += 1
        signs_CN = draw_signs(f"{self._key}/{self._draws}", self._matrix.channels, examples)
        return signs_CN.to(self._sums.total)

    @override
    def end_batch(self, *, examples: int, grad_scale: float | Tensor = 1.0) -> None:
        curvatures, self._curvatures = self._curvatures, []
        self._forget_calls()
        if not curvatures:
            return
        with torch.no_grad():
            score_C = sum(curvature_C for curvature_C, _ in curvatures) / grad_scale
            seen_C = torch.stack([seen_C for _, seen_C in curvatures]).any(0)
            self._sums.update(score_C, seen_C, examples)  # type: ignore[arg-type]

    @override
    def drop_batch(self) -> None:
        self._curvatures = []

    def _forget_calls(self) -> None:
        for gate in self.hooks.by_layer.values():
            gate.calls = []

    @override
    def scores(self) -> dict[str, Tensor]:
        return self._matrix.by_group(self._sums.mean())

    @override
    def state(self) -> dict[str, Tensor]:
        return {**super().state(), "draws": torch.tensor(self._draws)}

    @override
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_state(state)
        self._draws = int(state.get("draws", torch.tensor(0)))

    @override
    def close(self) -> None:
        super().close()
        self._forget_calls()


@final
class _Gate(InputHook):
    """A forward pre-hook that multiplies a layer's input by ones, anew in every call."""

    def __init__(self, module: nn.Module, width: int) -> None:
        super().__init__(module)
        self._width = width
        self.calls: list[Tensor] = []

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Let the layer's input pass through the gate, before its forward pass."""
        return None if self.paused else self._through_gate(args, kwargs)  # type: ignore[call-arg]

    @torch.compiler.disable
    def _through_gate(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        x = self.input_of(args, kwargs)
        if x is None or not x.is_floating_point():
            return None
        batched = x.ndim >= self.batched
        leading = x.shape[0] if batched else 1
        gate_LI = torch.ones(leading, self._width, dtype=x.dtype, device=x.device, requires_grad=True)
        self.calls.append(gate_LI)
        positions = [1] * (self.batched - 2 if self.maps else max(0, x.ndim - 2))
        shape = (leading, self._width, *positions) if self.maps else (leading, *positions, self._width)
        return with_input(args, kwargs, x * gate_LI.view(shape if batched else shape[1:]))


def draw_signs(key: str, *shape: int) -> Tensor:
    """Float32: +1 or -1, the same for the same key; no generator's state is touched."""
    # Not hash(): Python salts it anew in every process.
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1
    return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)) * 2.0 - 1.0


def _derivatives(value: Tensor, calls: list[tuple[str, Tensor]], *, create_graph: bool) -> dict[int, Tensor]:
    """Place of a call -> the derivative by its gate, of those that had a part in the value."""
    try:
        grads = torch.autograd.grad(
            value, [gate for _, gate in calls], create_graph=create_graph, retain_graph=True, allow_unused=True
        )
    except (RuntimeError, NotImplementedError) as error:
        raise UnsupportedModelError(
            f"OBD differentiates the loss twice, and this one cannot be: {str(error).splitlines()[0]} Turn off "
            "torch.compile, fused attention and reentrant checkpointing, or score with Taylor() or TaylorBatch(), "
            "which need one derivative"
        ) from error
    return {place: grad for place, grad in enumerate(grads) if grad is not None}


def _channels_of_entries(
    graph: ChannelGraph, consumers: Mapping[str, list[Any]], device: torch.device
) -> dict[str, Tensor]:
    """Consumer -> shape ``(I,)``, int64: the channel that each input entry belongs to; one past the last for none."""
    total = sum(group.size for group in graph.groups.values())
    channels: dict[str, Tensor] = {}
    start = 0
    for name, group in graph.groups.items():
        for consumer in consumers.get(name, []):
            channel_I = channels.setdefault(consumer.name, torch.full((consumer.width,), total))
            channel_I[consumer.index] = torch.arange(start, start + group.size)[:, None].expand_as(consumer.index)
        start += group.size
    return {name: channel_I.to(device) for name, channel_I in channels.items()}
