"""``trace_channels``: from a model and example inputs to the channel graph, proven."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from lightning_taylor.errors import NothingToPruneError, UnsupportedModelError
from lightning_taylor.graph.channel_graph import ChannelGraph
from lightning_taylor.modules.model_copy import private_copy, reveal, tensor_names
from lightning_taylor.trace.constraints import attach_constraints
from lightning_taylor.trace.examples import find_row_layouts
from lightning_taylor.trace.forward import quiet, unchanged
from lightning_taylor.trace.freeing import in_words
from lightning_taylor.trace.groups import build_graph
from lightning_taylor.trace.observe import Observation, Paths, observe, settle_precision
from lightning_taylor.trace.ops.recurrent import tie_recurrent
from lightning_taylor.trace.ops.table import find_rule
from lightning_taylor.trace.options import AttentionHeads, ConvGroups, TraceOptions, as_patterns
from lightning_taylor.trace.partition import LabelPartition
from lightning_taylor.trace.patterns import matches
from lightning_taylor.trace.program import Program, Step
from lightning_taylor.trace.proof import prove
from lightning_taylor.trace.reads_apart import ReadsApart
from lightning_taylor.trace.reasons import Why
from lightning_taylor.trace.scope import equal_parts, find_mirrors, find_scope, narrowed, with_mirrors
from lightning_taylor.trace.source_line import raised_in_words
from lightning_taylor.trace.state import TraceState
from lightning_taylor.trace.tracer import Tracer
from lightning_taylor.utilities.calls import ForwardCall, tensors_in

__all__ = [
    "require_groups",
    "trace_calls",
    "trace_channels",
]


def trace_channels(
    model: nn.Module,
    example_inputs: Any,
    *,
    ignore: Sequence[str] = (),
    verify: bool = True,
    allow_inexact_norms: bool = False,
    conv_groups: ConvGroups = "auto",
    attention_heads: AttentionHeads = "whole",
    scope: str | Sequence[str] = (),
) -> ChannelGraph:
    r"""Find the groups of channels that can be removed from a model, and why the others cannot.

    Every entry of every parameter dimension gets a label, and a copy of the model runs the training and the
    evaluation path on one example under a dispatch mode that works out which label each element of each
    activation carries. What meets, goes together; what no rule knows, is frozen. Then every family is proven on the
    copy: a share of its channels removed, the outputs must equal those of the copy whose consumers ignore them.

    The model itself is not touched: no mode, buffer, gradient or random state changes.

    Args:
        model: any module whose ``forward`` takes ``example_inputs``.
        example_inputs: a tensor, or a tuple of positional arguments, or a dict of keyword arguments. Only shapes
            and rough magnitudes matter; cut to one example for the trace.
        ignore: name patterns (``fnmatch``) of modules whose output channels stay; ``"layer4"`` covers everything
            inside, ``"*.conv1"`` every ``conv1``.
        verify: prove each family (two more forward passes); without it, a model that assumes a width in its code
            may be cut wrongly.
        allow_inexact_norms: let channels go that a LayerNorm, GroupNorm or RMSNorm averages over, or a norm that the
            model writes out (an average over channels, by which they are then scaled or shifted). Its statistics
            then run over the channels that are left, which changes what it makes of them: the smaller network is
            proven against one whose normalisations leave the removed channels out, not against the masked one.
        conv_groups: what goes from a grouped convolution. "whole": whole groups. "spread": the same channels of every
            group, as many of each; whole groups where a group has a single channel. "auto": whichever makes more units
            to choose from, that is whole groups where there are at least as many as each of them reads channels.
            Neither always wins: of a small ResNeXt on CIFAR-10 (means of 3 seeds, at 50 and 30 % of the FLOPs) whole
            groups kept 1.2 and 2.8 points more accuracy where there are 16 groups of 4 channels, 0.4 and 1.0 less where
            there are 4 of 16, and 0.7 and 0.7 more where there are 8 of 8; the last two are near the noise.
        attention_heads: what goes from an attention. "whole": whole heads. "spread": the same coordinates of every
            head, of queries and keys together and of values, wherever the products keep their scale; whole heads
            elsewhere. The attentions of torch and torchvision keep it, and so does code that multiplies by a number of
            its own; ``F.scaled_dot_product_attention`` without ``scale`` does not.
        scope: name patterns, as for ``ignore``, of the modules that may lose channels and whose FLOPs and parameters
            count; by default the whole model. What lies beyond keeps every weight as it is.

    Returns:
        The graph; it may have no groups, then ``frozen`` says why.

    Raises:
        UnsupportedModelError: if the model is scripted, quantized, lazy, sparse or on the meta device, or its forward
            pass raises, returns no tensor, or no finite number.
        ValueError: if a pattern of ``ignore`` or ``scope`` matches nothing, there is no example, or a choice is none of
            these.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 5, 3))
        >>> graph = trace_channels(net, torch.rand(1, 3, 16, 16))
        >>> {name: group.size for name, group in graph.groups.items()}
        {'0': 8}
        >>> graph.frozen
        {'2': 'reaches the output'}
    """
    if isinstance(example_inputs, Mapping):
        call = ForwardCall("", (), example_inputs)
    else:
        call = ForwardCall("", example_inputs if isinstance(example_inputs, tuple) else (example_inputs,))
    options = TraceOptions(allow_inexact_norms, conv_groups, attention_heads, as_patterns(scope))
    return trace_calls(model, [call], ignore=ignore, verify=verify, options=options)


def trace_calls(
    model: nn.Module,
    calls: Sequence[ForwardCall],
    *,
    ignore: Sequence[str] = (),
    verify: bool = True,
    options: TraceOptions | None = None,
    step: Step | None = None,
    trained: Iterable[str] | None = None,
    equal: Collection[tuple[str, str]] | None = None,
    forward: ForwardCall | None = None,
) -> ChannelGraph:
    """Trace a model whose parts are called one by one from a training step, or the step itself.

    Args:
        model: as for ``trace_channels``.
        calls: the outermost forward calls, in order.
        ignore: as for ``trace_channels``.
        verify: as for ``trace_channels``.
        options: the choices of ``trace_channels``.
        step: the training step that made the calls, if it can be made again on a copy.
        trained: names of the parameters that an optimizer has and a gradient reached; None if nobody knows. What is
            neither trained nor run by ``forward`` is part of the loss: neither cut nor counted.
        equal: as ``scope.equal_parts`` found them when training began; None for the values that the model has now.
        forward: a call of the whole model as it is deployed, whose FLOPs are counted; None for those among ``calls``.

    Raises:
        UnsupportedModelError, ValueError: as ``trace_channels``.
    """
    _check_patterns(ignore)
    net = private_copy(model)
    program = Program(tuple(calls), step, forward)
    if not program.examples:
        raise ValueError("the example inputs are a batch without an example; give at least one")
    dtype, few, two, failure = settle_precision(net, program)
    if trained is not None and equal is None:  # before the values are spread out
        equal = equal_parts(net)
    reveal(net, torch.Generator().manual_seed(0))
    deployed = None if trained is None else _deployed(net, few, dtype)
    found = find_mirrors(net, deployed, trained, equal)
    mirrors = {name: original for name, original in found.items() if not any(matches(name, p) for p in ignore)}
    scope = find_scope(net, deployed, trained, mirrors)
    scope = narrowed(scope, net, options.scope if options else ())
    names = tensor_names(net)
    parameters = frozenset(names[id(p)] for p in net.parameters())
    tensors = {id(t): t for t in (*net.parameters(), *net.buffers())}
    shapes = {name: tuple(tensors[key].shape) for key, name in names.items()}
    partition = LabelPartition(shapes, frozenset(shapes) - parameters, options)
    constraints = attach_constraints(partition)
    returned: list[Any] = []
    for training in (False, True):
        examples = None if training else few.counted
        try:
            modules = dict(net.named_modules())
            state = TraceState(partition, constraints, scope.names(names), examples, modules, scope.modules)
            tracer = Tracer(state, find_rule)
            apart = ReadsApart(net, names, lambda state=state: state.module)
            returned += _trace_path(net, few, tracer, apart, training=training, dtype=dtype)
        except Exception as error:
            raise _raised(net, error) from error
    if next(tensors_in(returned), None) is None:
        raise UnsupportedModelError(
            f"the forward pass of {type(net).__name__} returned {type(returned[-1]).__name__} without a tensor in it, "
            "so nothing tells which channels are its result; return tensors, or tuples, lists, dicts or dataclasses "
            "of them"
        )
    tie_recurrent(partition, net)
    partition.settle()
    _ignore(partition, ignore, {*(name.rpartition(".")[0] for name in found), *vars(net)})
    _hold_unsaved(partition, net)
    unseen = _unseen(partition, net)
    whole = program if few.step else program.without_step()
    rows = find_row_layouts(net, whole, dtype, {id(p): names[id(p)] for p in net.parameters()}) if verify else {}

    def build() -> ChannelGraph:
        graph = build_graph(partition, constraints, parameters, unseen)
        step_failure = "" if failure is None else raised_in_words(failure)
        return replace(with_mirrors(graph, scope), rows=rows, apart=frozenset(apart.seen), step_failure=step_failure)

    def run(paths: Paths, more: bool) -> Observation:
        return observe(net, two if more else few, dtype, paths)

    return prove(net, build, partition, constraints.statistics, run) if verify else build()


def require_groups(graph: ChannelGraph) -> ChannelGraph:
    """The graph itself, if anything can be removed from it.

    Raises:
        NothingToPruneError: listing the reasons.
    """
    if graph.groups:
        return graph
    reasons = in_words(graph.frozen) or "no layers were run"
    raise NothingToPruneError(f"no channel of this model can be removed. {reasons}")


def _deployed(net: nn.Module, program: Program, dtype: torch.dtype) -> set[str] | None:
    """Return the names of the tensors that a call of the whole module reads; None if there is no such call."""
    if not program.deployed:
        return None
    names, read = tensor_names(net), set()

    class _Reading(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            read.update(names[id(t)] for t in tensors_in((args, kwargs or {})) if id(t) in names)
            return func(*args, **(kwargs or {}))

    for training in (False, True):
        with unchanged(net, training), quiet(dtype=dtype), _Reading():
            for call in program.deployed:
                try:
                    net(*call.args, **call.kwargs)
                except Exception as error:
                    raise _raised(net, error) from error
    return read


def _trace_path(
    net: nn.Module, program: Program, tracer: Tracer, apart: ReadsApart, *, training: bool, dtype: torch.dtype
) -> list[Any]:
    state, returned = tracer.state, []
    step = program.step is not None and (training or program.runs_step_only)

    def leave(out: Any, reason: str) -> None:
        for tensor in tensors_in(out):
            state.mark_used(tensor)
            state.statistics.at_output(tensor)
            state.freeze(state.labels_of(tensor), reason)

    with unchanged(net, training, step=step), quiet(dtype=dtype), _watched(net, state, leave):
        run = program.run(net, training=training)
        while True:
            with apart, tracer:
                out = next(run, _END)
            if out is _END:
                return returned
            leave(out, Why.LOSS() if step else Why.OUTPUT())
            returned.append(out)


def _raised(net: nn.Module, error: Exception) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"the trace of {type(net).__name__} raised {type(error).__name__}, after a forward pass that did not: {error}"
    )


_END = object()


@contextmanager
def _watched(net: nn.Module, state: TraceState, leave_network: Callable[[Any, str], None]) -> Iterator[None]:
    """Tell the trace which module is running, and what the whole module returns to its step."""
    stack: list[str] = []
    handles = []
    for name, module in net.named_modules():

        def enter(_module: nn.Module, _args: Any, name: str = name) -> None:
            stack.append(name)
            state.module = name

        def leave(_module: nn.Module, args: Any, out: Any) -> None:
            name = stack.pop()
            state.module = stack[-1] if stack else ""
            with _disable_current_modes(), torch._C.DisableTorchFunction():
                state.told.note(state.module, name, args, out, state.labels_of)
            if name == "" and out is not None:
                with _disable_current_modes():
                    leave_network(out, Why.OUTPUT())

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        with state.told.watching(net):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _ignore(partition: LabelPartition, patterns: Sequence[str], copies: Collection[str]) -> None:
    """Freeze the output channels of every layer whose name, or the name of a module around it, matches.

    Args:
        partition: that knows the layers.
        patterns: of names.
        copies: names of what may hold copies of the network, which are no layers of it.
    """
    for pattern in patterns:
        hit = [layer for layer in partition.layers if matches(layer, pattern)]
        if not hit and not any(matches(name, pattern) for name in copies):
            raise ValueError(
                f"ignore pattern {pattern!r} matches no layer; the layers are {', '.join(partition.layers) or 'none'}"
            )
        for layer in hit:
            partition.freeze_axes([partition.layers[layer]], Why.IGNORED(pattern=pattern))


def _hold_unsaved(partition: LabelPartition, net: nn.Module) -> None:
    """Freeze what lies along buffers that no state dict holds: a checkpoint could not say what is left of them."""
    unsaved = {
        f"{name}.{buffer}".lstrip(".")
        for name, module in net.named_modules()
        for buffer in module._non_persistent_buffers_set
    }
    for axis in partition.axes:
        if axis[0] in unsaved:
            partition.freeze_axes([axis], Why.UNSAVED(name=axis[0]))


def _check_patterns(patterns: Any) -> None:
    if isinstance(patterns, str):
        raise ValueError(f"ignore takes a list of patterns, got the string {patterns!r}; write [{patterns!r}]")
    if not isinstance(patterns, Sequence) or not all(isinstance(p, str) and p for p in patterns):
        raise ValueError(f"ignore takes a list of name patterns such as ['layer4', '*.conv1'], got {patterns!r}")


def _unseen(partition: LabelPartition, net: nn.Module) -> tuple[str, ...]:
    """Modules with a weight that neither path used."""
    names = tensor_names(net)
    return tuple(
        module_name
        for module_name, module in net.named_modules()
        if any(p.ndim > 1 and names[id(p)] not in partition.seen for p in module.parameters(recurse=False))
    )
