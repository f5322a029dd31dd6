"""The public page and the second pages: what is on them, and what importing them costs."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import lightning.pytorch  # noqa: F401  it sets environment variables, which a test may not
import pytest

import lightning_taylor

PUBLIC = {
    "TaylorPruning", "Target", "Gradual", "Iterative", "OneShot", "Guard", "Criterion", "Taylor", "TaylorBatch",
    "WeightMagnitude", "ActivationMean", "ActivationStd", "APoZ", "MutualInformation", "OBD", "Random",
    "trace_channels", "prune_channels", "ChannelGraph", "load_pruned",
}  # fmt: skip
ALSO_HERE = {
    "PrunedCheckpointMixin", "PrunedModelCheckpoint", "Combined", "inspect_model", "Inspection", "export_onnx",
    "export_program", "export_state_dict", "register_attributes", "ChannelGroup", "PruningError",
    "NothingToPruneError", "OptimizerStateError", "TargetUnreachableError", "UncoupledChannelsError",
    "UnsupportedModelError",
}  # fmt: skip
PAGES = {
    "checkpoint": {"PrunedCheckpointMixin", "load_pruned"},
    "criteria": {"Combined", "Scorer"},
    "errors": {"PruningError", "ExportError"},
    "export": {
        "export_onnx",
        "export_program",
        "export_state_dict",
        "Exported",
        "ExportError",
        "PrunedPretrainedMixin",
    },
    "fit": {"PrunedModelCheckpoint", "TaylorPruning"},
    "plan": {"Schedule", "Demand", "Target"},
    "report": {"inspect_model", "Inspection", "PruningSummary"},
}


def test_the_public_names_are_one_page() -> None:
    assert set(lightning_taylor.__all__) == PUBLIC
    assert all(getattr(lightning_taylor, name).__doc__ for name in PUBLIC)


@pytest.mark.parametrize("name", sorted(ALSO_HERE))
def test_what_is_on_a_second_page_can_still_be_imported_from_the_first(name: str) -> None:
    """Users' imports and the class paths of their YAML say so."""
    value = getattr(lightning_taylor, name)
    assert value.__name__ == name
    assert name in dir(lightning_taylor)


@pytest.mark.parametrize("page", PAGES)
def test_each_second_page_is_short_and_holds_what_it_lists(page: str) -> None:
    module = import_module(f"lightning_taylor.{page}")
    assert getattr(lightning_taylor, page) is module
    assert PAGES[page] <= set(module.__all__)
    assert len(module.__all__) <= 20
    assert all(getattr(module, name) is not None for name in module.__all__)


def test_editors_see_the_same_names_as_the_running_program() -> None:
    tree = ast.parse(Path(lightning_taylor.__file__).read_text())
    (guarded,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    shown = {
        alias.name: (node.module or "").removeprefix("lightning_taylor.")
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert shown == lightning_taylor._HOMES
    assert set(shown) == PUBLIC | ALSO_HERE


def test_a_name_that_is_nowhere_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'TaylorPrunin'"):
        _ = lightning_taylor.TaylorPrunin


def test_no_command_waits_for_what_it_does_not_need() -> None:
    """Not ``--version`` for torch, nor ``inspect`` of a checkpoint for Lightning and torchvision."""
    code = (
        "import sys, lightning_taylor; assert lightning_taylor.__version__; "
        "assert not {'torch', 'lightning', 'numpy'} & set(sys.modules); "
        "import lightning_taylor.cli.inspect; "
        "assert not {'lightning', 'torchvision', 'torchmetrics', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


IMPORT = """
import sys, torch
before = torch.get_default_dtype(), torch.get_num_threads()
from lightning_taylor import *
assert before == (torch.get_default_dtype(), torch.get_num_threads())
assert "lightning_taylor.cli" not in sys.modules
"""

FIT = """
import builtins
EXTRAS = "torchvision sklearn matplotlib onnx onnxruntime jsonargparse docstring_parser".split()
imported = builtins.__import__

def without_extras(name, namespace=None, *rest):
    # Lightning and torchmetrics import some of them by themselves where they are installed.
    if name.split(".")[0] in EXTRAS and (namespace or {}).get("__name__", "").startswith("lightning_taylor"):
        raise ModuleNotFoundError("not installed: " + name)
    return imported(name, namespace, *rest)

builtins.__import__ = without_extras
import lightning as L, torch
from lightning_taylor import *
from lightning_taylor import OneShot, TaylorPruning

class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        conv = torch.nn.Conv2d
        self.net = torch.nn.Sequential(conv(3, 8, 3), torch.nn.ReLU(), conv(8, 8, 3), torch.nn.Flatten(),
                                       torch.nn.Linear(128, 2))

    def training_step(self, batch, batch_idx):
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)

trainer = L.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                    enable_progress_bar=False, callbacks=[TaylorPruning(target=0.6, schedule=OneShot(step=2))])
net = Net()
trainer.fit(net, torch.utils.data.DataLoader(torch.rand(16, 3, 8, 8), batch_size=4))
assert net.net[0].out_channels < 8
"""

SHORT_NAME = """
from lightning.pytorch.cli import LightningArgumentParser
import lightning_taylor
from lightning.pytorch import Callback
parser = LightningArgumentParser()
parser.add_subclass_arguments(Callback, "callback")
config = parser.parse_args(["--callback=TaylorPruning", "--callback.schedule=OneShot", "--callback.schedule.step=3"])
assert config.callback.class_path == "lightning_taylor.TaylorPruning", config
assert config.callback.init_args.schedule.class_path == "lightning_taylor.OneShot", config
"""

FORKS = """
import json, os, sys, traceback, warnings
warnings.simplefilter("ignore")
import torch, lightning.pytorch
assert not [name for name in sys.modules if name.startswith("lightning_taylor")]
failed = []
for name, code in json.loads(sys.argv[1]).items():
    child = os.fork()
    if not child:
        try:
            exec(code, {"__name__": "__main__"})
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    failed += [name] * (os.waitpid(child, 0)[1] != 0)
print("failed:", failed)
"""


@pytest.mark.slow
def test_in_a_process_of_its_own_each_of_these_works(tmp_path: Path) -> None:
    """Each in a fork of one process that has imported Lightning and nothing of this package: that takes longest."""
    code = {"importing the package changes nothing": IMPORT, "a fit needs no extra and no torchvision": FIT}
    if find_spec("jsonargparse"):
        code["a LightningCLI takes short class names"] = SHORT_NAME
    command = [sys.executable, "-W", "ignore", "-c", FORKS, json.dumps(code)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "failed: []", done.stderr
