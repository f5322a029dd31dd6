from __future__ import annotations

from pathlib import Path

import pytest
import torch
import zoo
from torch import nn

from export.nets import Classes, Forgetful, Pair, Segmenter, Wrapper, halved
from lightning_taylor.export.program import export_program
from lightning_taylor.export.verified_write import ExportError


def run(path: Path, *args: torch.Tensor) -> object:
    return torch.export.load(path).module()(*args)


@pytest.mark.parametrize("name", zoo.NETS)
def test_every_small_net_gives_the_same_after_pruning_in_double_precision(name: str, tmp_path: Path) -> None:
    model, x = zoo.build(name)
    exported = export_program(halved(model, x), x, tmp_path / "net.pt2")
    assert exported.max_difference < 1e-12
    # The trace of nn.MultiheadAttention takes the number of examples for a constant.
    assert exported.dynamic_batch == (name != "multihead")
    assert exported.inputs == (tuple(x.shape),)
    assert exported.bytes == exported.path.stat().st_size


def test_a_program_takes_any_number_of_examples_and_several_inputs(tmp_path: Path) -> None:
    model, inputs = Segmenter(), (torch.rand(1, 3, 6, 6), torch.rand(1, 1, 6, 6))
    exported = export_program(halved(model, inputs), inputs, tmp_path / "net.pt2")
    more = torch.rand(7, 3, 6, 6), torch.rand(7, 1, 6, 6)
    found, expected = run(exported.path, *more), model.eval()(*more)
    assert list(found) == ["out", "aux"]
    torch.testing.assert_close(found, expected)


def test_inputs_by_name_are_exported_by_name(tmp_path: Path) -> None:
    inputs = {"depth": torch.rand(2, 1, 6, 6), "image": torch.rand(2, 3, 6, 6)}
    exported = export_program(Segmenter(), inputs, tmp_path / "net.pt2")
    out = torch.export.load(exported.path).module()(image=torch.rand(3, 3, 6, 6), depth=torch.rand(3, 1, 6, 6))
    assert out["out"].shape == (3, 4, 6, 6)


def test_code_that_knows_its_batch_size_is_exported_for_that_one(tmp_path: Path) -> None:
    exported = export_program(Pair(), torch.rand(2, 3, 6, 6), tmp_path / "net.pt2")
    assert not exported.dynamic_batch
    assert run(exported.path, torch.rand(2, 3, 6, 6)).shape == (2, 2)


def test_a_fixed_batch_size_can_be_asked_for(tmp_path: Path) -> None:
    exported = export_program(Classes(), torch.rand(2, 3, 6, 6), tmp_path / "net.pt2", dynamic_batch=False)
    assert not exported.dynamic_batch
    with pytest.raises(AssertionError, match="2"):
        run(exported.path, torch.rand(5, 3, 6, 6))


def test_a_program_that_computes_something_else_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"net.pt2 differs from the model by [0-9.]+ where"):
        export_program(Forgetful(), torch.rand(2, 3, 6, 6), tmp_path / "net.pt2")
    assert not list(tmp_path.iterdir())


def test_the_model_stays_as_it_is(tmp_path: Path) -> None:
    model = Segmenter()
    model.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen = []
    model.stem.register_forward_hook(lambda *_: seen.append(1))
    inputs = (torch.rand(2, 3, 6, 6), torch.rand(2, 1, 6, 6))
    export_program(model, inputs, tmp_path / "net.pt2")
    assert [m.training for m in model.modules()] == [m is not model.norm for m in model.modules()]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert sum(hooks) == len(model.stem._forward_hooks) == 1
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.slow
def test_a_lightning_module_and_a_compiled_one_are_exported_like_any_other(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 3))
    x = torch.rand(2, 3, 8, 8)
    for name, model in (("lightning", Wrapper(net)), ("compiled", torch.compile(net))):
        assert export_program(model, x, tmp_path / f"{name}.pt2").max_difference == 0


def test_any_name_will_do(tmp_path: Path) -> None:
    exported = export_program(Classes(), torch.rand(2, 3, 6, 6), tmp_path / "a=1.program")
    assert exported.path.name == "a=1.program"
    assert [tuple(t.shape) for t in run(exported.path, torch.rand(3, 3, 6, 6))] == [(3, 5), (3,)]
