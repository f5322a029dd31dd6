"""Real architectures, halved, through both forms that need nothing of this package to run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import zoo
from torch import Tensor, nn

pytest.importorskip("onnxruntime", reason="needs the extra export")
pytest.importorskip("onnxscript", reason="needs the extra export")

from export.nets import halved
from lightning_taylor.export.onnx import export_onnx
from lightning_taylor.export.state_dict import export_state_dict

ALONE = """
import importlib, sys, traceback
sys.modules["lightning_taylor"] = None  # an import of it raises
import torch
torch.set_num_threads(1)  # as the tests: sums in another order have other last digits
for folder in sys.argv[1:]:
    sys.path.insert(0, folder)
    sys.modules.pop("load_net", None)
    try:
        net = importlib.import_module("load_net").load()
        x, expected = torch.load(folder + "/pair.pt", weights_only=True)
        with torch.no_grad():
            found = net(x)
        found = found if isinstance(found, torch.Tensor) else found["out"]
        assert torch.equal(found, expected), (found - expected).abs().max()
        assert not net.training
        print("same", sum(p.numel() for p in net.parameters()))
    except Exception:
        print(traceback.format_exc().replace(chr(10), " "))
assert not [name for name in sys.modules if name.startswith(("lightning", "pytorch_lightning"))
            and sys.modules[name] is not None]
"""
SIDES = {
    "squeezenet1_1": 64, "resnet18": 64, "mobilenet_v2": 64, "r3d_18": 32, "lraspp_mobilenet_v3_large": 64,
    "googlenet": 64, "shufflenet_v2_x0_5": 64, "alexnet": 64,
}  # fmt: skip
"""Name -> side of its images: the smallest net of each way to connect layers."""

NOT_IN_ONNX = {"shufflenet_v2_x0_5", "alexnet", "mobilenet_v2", "r3d_18"}
"""Nets whose layers and connections are those of the small nets that ``test_onnx.py`` exports.

``campaigns/round_trips.py`` makes both round trips with each.
"""


def rebuilt_alone(nets: dict[str, tuple[nn.Module, Tensor]], folder: Path) -> dict[str, str]:
    """What a process says of each net that has torch and torchvision only: all in one, since it takes long to start."""
    for name, (model, x) in nets.items():
        (folder / name).mkdir()
        assert export_state_dict(model, x, folder / name / "net.pt").max_difference == 0
        with torch.no_grad():
            out = model(x)
        torch.save([x, out if isinstance(out, Tensor) else out["out"]], folder / name / "pair.pt")
    folders = [str(folder / name) for name in nets]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ALONE, *folders], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(nets, done.stdout.splitlines(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [
        ["squeezenet1_1"],
        ["resnet18", "mobilenet_v2", "r3d_18", "alexnet"],
        ["lraspp_mobilenet_v3_large", "shufflenet_v2_x0_5"],
    ],
    ids=" ".join,
)
def test_torchvision_nets_are_rebuilt_without_this_package_and_run_in_onnx_runtime(
    names: list[str], tmp_path: Path
) -> None:
    make_round_trips(names, tmp_path, in_onnx=[name for name in names if name not in NOT_IN_ONNX])


def make_round_trips(names: list[str], folder: Path, in_onnx: list[str]) -> None:
    """Halve and export networks to both forms at once, since to trace and halve a net takes as long as either."""
    nets, dense = {}, {}
    for name in names:
        model, x = zoo.torchvision_model(name, SIDES.get(name))
        dense[name] = parameters(model)
        nets[name] = halved(zoo.randomize(model), x).eval(), x
    said = rebuilt_alone(nets, folder)
    assert said == {name: f"same {parameters(model)}" for name, (model, _) in nets.items()}
    assert all(parameters(model) < 0.6 * dense[name] for name, (model, _) in nets.items())
    chosen = {name: nets[name] for name in in_onnx}
    found = {name: export_onnx(model, x, folder / name / "net.onnx") for name, (model, x) in chosen.items()}
    assert {name: exported.dynamic_batch for name, exported in found.items()} == dict.fromkeys(found, True)
    assert {name: exported.max_difference for name, exported in found.items() if exported.max_difference >= 1e-4} == {}


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
