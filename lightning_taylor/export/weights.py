"""A state dict with what it takes to load it where nobody has heard of pruning."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_taylor.export.architecture import architecture_record, loader_text, torchvision_builders
from lightning_taylor.export.keep import Candidate, Exported, ExportError, keep, uncompiled
from lightning_taylor.modules.model_copy import private_copy
from lightning_taylor.utilities.calls import Inputs

__all__ = ["export_state_dict"]

Builder = tuple[str | None, Mapping[str, Any]]


def export_state_dict(
    model: nn.Module,
    example_inputs: Any,
    path: str | Path,
    *,
    builder: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    tolerance: float | None = None,
) -> Exported:
    r"""Write a model's state dict, a record of its architecture, and the loader that rebuilds it from the two.

    For ``net.pt`` there are, beside it, ``net.json`` and ``load_net.py``. The loader needs torch and whatever builds
    the unpruned network (torchvision, for its models), but not this package::

        def load(path):  # of the record
            record = json.loads(Path(path).read_text())
            package, _, name = record["builder"].rpartition(".")
            model = getattr(importlib.import_module(package), name)(**record["arguments"])
            for layer, attributes in record["layers"].items():
                vars(model.get_submodule(layer)).update(attributes)
            tensors = torch.load(Path(path).with_name(record["weights"]), weights_only=True)
            for name, tensor in tensors.items():
                layer, _, attribute = name.rpartition(".")
                getattr(model.get_submodule(layer), attribute).data = tensor
            model.load_state_dict(tensors)
            return model.eval()

    The files are kept only if what this very loader builds gives what the model gives on ``example_inputs``: no
    output may differ by more than ``tolerance`` times the largest absolute value of that output.

    Args:
        model: any module; its modes, buffers and hooks are left as they are.
        example_inputs: a tensor, a tuple of positional arguments or a dict of arguments by name.
        path: the file of the state dict, on the CPU, which ``torch.load(weights_only=True)`` reads; its folder is
            made. Files of these names are replaced.
        builder: what makes the unpruned network: the import path of a function or class, or the name of a model in
            torchvision. For torchvision's own models it is found. Without one, the loader is ``load(model)`` and
            takes the unpruned network from its caller; then the files are compared by means of a copy of ``model``.
        arguments: what the builder is called with, in types that JSON has.
        tolerance: see above; by default 1e-4 in float32, 1e-8 in float64, 1e-2 in float16 and 5e-2 in bfloat16.

    Returns:
        The file of the state dict, the largest difference, the size of all three and the shapes they were compared
        on.

    Raises:
        ExportError: if the builder does not make this network, or an attention lost heads, which the code of its
            library cannot run: no file is left then.
        ValueError: if ``example_inputs`` has no tensor, or no example; if ``path`` ends like one of the other two
            files; if ``arguments`` come without a builder or cannot be written as JSON.

    Example:
        >>> import tempfile, torchvision
        >>> net = torchvision.models.squeezenet1_1(num_classes=3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     exported = export_state_dict(net, torch.rand(1, 3, 32, 32), f"{folder}/net.pt")
        ...     sorted(file.name for file in exported.path.parent.iterdir())
        ['load_net.py', 'net.json', 'net.pt']
        >>> exported.max_difference
        0.0
    """
    model, path, inputs = uncompiled(model), Path(path), Inputs.of(example_inputs)
    if path.suffix in (".json", ".py"):
        raise ValueError(
            f"{path.name} is for the tensors, and the record and the loader get .json and .py: name it .pt"
        )
    _check_own_code(model)
    builders = _builders(model, builder, dict(arguments or {}))
    candidates = [_candidate(model, inputs, path, found) for found in builders]
    return keep(model, path, candidates, tolerance)


def _check_own_code(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if type(module).__module__.startswith("lightning_taylor.modules"):
            raise ExportError(
                f"{name!r} lost attention heads and runs {type(module).__name__} of this package, so nothing else "
                "can rebuild it: use export_onnx or export_program"
            )


def _builders(model: nn.Module, builder: str | None, arguments: dict[str, Any]) -> list[Builder]:
    if builder is None:
        if arguments:
            raise ValueError(f"arguments={arguments} are for a builder: give builder= as well")
        return [*torchvision_builders(model), (None, {})]
    try:
        json.dumps(arguments)
    except TypeError as error:
        raise ValueError(f"arguments={arguments} cannot be written as JSON: {error}") from error
    if "." in builder:
        return [(builder, arguments)]
    return [("torchvision.models.get_model", {"name": builder, "weights": None, **arguments})]


def _candidate(model: nn.Module, inputs: Inputs, path: Path, builder: Builder) -> Candidate:
    record_name, loader_name = f"{path.stem}.json", f"load_{re.sub(r'[^0-9A-Za-z]+', '_', path.stem)}.py"

    def write(folder: Path) -> Sequence[Path]:
        state = {n: t.detach().cpu() if isinstance(t, Tensor) else t for n, t in model.state_dict().items()}
        torch.save(state, folder / path.name)
        record = architecture_record(model, path.name, *builder)
        (folder / record_name).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (folder / loader_name).write_text(loader_text(record_name, builder[0]), encoding="utf-8")
        return [folder / path.name, folder / record_name, folder / loader_name]

    def load(file: Path) -> Callable[[Inputs], Any]:
        # The text that was written, not a function that resembles it.
        loader = file.with_name(loader_name)
        names: dict[str, Any] = {"__file__": str(loader)}
        exec(compile(loader.read_text(encoding="utf-8"), str(loader), "exec"), names)
        with torch.random.fork_rng(devices=[]):
            loaded = names["load"]() if builder[0] else names["load"](_blank(model))
        loaded.to(inputs.tensors[0].device)

        def run(given: Inputs) -> Any:
            with torch.no_grad():
                return given.run(loaded)

        return run

    return Candidate(write, load, [inputs], dynamic_batch=True)


def _blank(model: nn.Module) -> nn.Module:
    """A copy that has forgotten its values: those that come back come from the file."""
    copy = private_copy(model)
    with torch.no_grad():
        for tensor in (*copy.parameters(), *copy.buffers()):
            tensor.zero_()
    return copy
