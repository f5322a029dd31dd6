from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
import zoo

pytest.importorskip("onnxruntime", reason="needs the extra export")
pytest.importorskip("onnxscript", reason="needs the extra export")

from export.nets import Classes, Forgetful, Pair, Segmenter, SideBySide, Wrapper, halved
from lightning_taylor.export import onnx as onnx_file
from lightning_taylor.export.onnx import export_onnx, onnx_session
from lightning_taylor.export.verified_write import ExportError
from lightning_taylor.utilities.calls import Inputs

QUICK = ("residual", "volume", "decoder")
IMAGE = (2, 3, 12, 12)


def check(name: str, path: Path) -> None:
    model, x = zoo.build(name)
    model, x = halved(model.float(), x.float()), x.float()
    exported = export_onnx(model, x, path)
    # torch's trace of nn.MultiheadAttention takes the number of examples for a constant.
    assert exported.dynamic_batch == (name != "multihead")
    given = Inputs.of(x).with_batch(5 if exported.dynamic_batch else len(x))
    (found,) = onnx_session(path)(given)
    torch.testing.assert_close(found, given.run(model.eval()), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_onnx_runtime_gives_what_the_pruned_net_gives(name: str, tmp_path: Path) -> None:
    check(name, tmp_path / "net.onnx")


OF_ONE_IMAGE = [n for n in sorted(zoo.NETS) if n not in (*QUICK, "multihead") and zoo.NETS[n][1]().shape == IMAGE]
OTHERS = sorted(zoo.NETS.keys() - {*QUICK, *OF_ONE_IMAGE})


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_onnx_runtime_gives_what_every_other_small_net_gives(name: str, tmp_path: Path) -> None:
    check(name, tmp_path / "net.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("names", [OF_ONE_IMAGE[i::3] for i in range(3)], ids=" ".join)
def test_onnx_runtime_gives_what_the_small_nets_give_side_by_side(names: list[str], tmp_path: Path) -> None:
    """In one file for many: of an export of a small net, most of the time is torch's preparation."""
    nets = {name: halved(net.float(), x.float()) for name in names for net, x in [zoo.build(name)]}
    side_by_side = SideBySide(nets).eval()
    assert export_onnx(side_by_side, torch.randn(IMAGE), tmp_path / "net.onnx").dynamic_batch
    image = torch.randn(5, *IMAGE[1:])
    found = dict(zip(names, onnx_session(tmp_path / "net.onnx")(Inputs.of(image)), strict=True))
    expected = side_by_side(image)
    assert [n for n in names if not torch.allclose(found[n], expected[n], rtol=1e-4, atol=1e-5)] == []


@pytest.mark.slow
def test_inputs_and_outputs_have_the_names_that_forward_gives_them(tmp_path: Path) -> None:
    import onnxruntime

    inputs = {"depth": torch.rand(1, 1, 6, 6), "image": torch.rand(1, 3, 6, 6)}
    path = export_onnx(halved(Segmenter(), inputs), inputs, tmp_path / "net.onnx").path
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert {given.name: given.shape for given in session.get_inputs()} == {
        "depth": ["batch", 1, 6, 6],
        "image": ["batch", 3, 6, 6],
    }
    assert [(out.name, out.shape) for out in session.get_outputs()] == [
        ("out", ["batch", 4, 6, 6]),
        ("aux", ["batch", 4, 6, 6]),
    ]


class Doubled(torch.nn.Module):
    """Gives two rows for each example, and scales them by a tensor that counts none."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)

    def forward(self, image: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.conv(image)] * 2).mean((2, 3)) * scale


@pytest.mark.slow
def test_dimensions_that_depend_on_the_number_of_examples_say_how(tmp_path: Path) -> None:
    import onnxruntime

    inputs = (torch.rand(2, 3, 6, 6), torch.rand(4))
    exported = export_onnx(Doubled(), inputs, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    assert exported.dynamic_batch
    assert [given.shape for given in session.get_inputs()] == [["batch", 3, 6, 6], [4]]
    (output,) = session.get_outputs()
    assert output.shape == ["2*batch", 4]


@pytest.mark.slow
def test_several_unnamed_outputs_are_numbered_and_whole_numbers_are_kept(tmp_path: Path) -> None:
    import onnxruntime

    path = export_onnx(Classes(), torch.rand(3, 3, 6, 6), tmp_path / "net.onnx").path
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [(out.name, out.type) for out in session.get_outputs()] == [
        ("output", "tensor(float)"),
        ("output_1", "tensor(int64)"),
    ]


@pytest.mark.slow
def test_a_lightning_module_is_exported_without_a_word_or_a_warning(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    net = Wrapper(torchvision.models.squeezenet1_1(num_classes=3))
    net.net.features[3].eval()
    exported = export_onnx(net, torch.rand(1, 3, 32, 32), tmp_path / "net.onnx")
    assert capfd.readouterr() == ("", "")
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]
    assert exported.bytes > sum(p.nbytes for p in net.parameters())
    assert net.training
    assert not net.net.features[3].training


@pytest.mark.slow
def test_code_that_knows_its_batch_size_is_exported_for_that_one(tmp_path: Path) -> None:
    exported = export_onnx(Pair(), torch.rand(2, 3, 6, 6), tmp_path / "net.onnx")
    assert not exported.dynamic_batch
    assert "this batch size only" in str(exported)


@pytest.mark.slow
def test_the_operator_set_can_be_chosen(tmp_path: Path) -> None:
    import onnx

    path = export_onnx(Classes(), torch.rand(2, 3, 6, 6), tmp_path / "net.onnx", opset=20).path
    assert {entry.version for entry in onnx.load(path).opset_import if entry.domain == ""} == {20}


@pytest.mark.slow
def test_a_file_that_computes_something_else_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"net.onnx differs from the model by [0-9.]+ where"):
        export_onnx(Forgetful(), torch.rand(2, 3, 6, 6), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_precisions_that_onnx_runtime_cannot_compute_in_are_refused(tmp_path: Path) -> None:
    for dtype in (torch.float64, torch.bfloat16):
        with pytest.raises(ValueError, match=f"no convolution in {dtype} on the CPU: export model.float()"):
            export_onnx(Classes().to(dtype), torch.rand(2, 3, 6, 6, dtype=dtype), tmp_path / "net.onnx")


def test_without_the_extra_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(ModuleNotFoundError, match=r"missing onnxscript: pip install 'lightning-taylor\[export\]'"):
        export_onnx(Classes(), torch.rand(2, 3, 6, 6), tmp_path / "net.onnx")


def opset_of(path: Path) -> int:
    import onnx

    return {each.domain: each.version for each in onnx.load(path).opset_import}[""]


@pytest.mark.slow
def test_the_opset_that_was_asked_for_is_the_files_or_the_error_names_the_lowest_that_works(tmp_path: Path) -> None:
    net, x, path = (
        torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()),
        torch.rand(2, 3, 6, 6),
        tmp_path / "n.onnx",
    )
    export_onnx(net, x, path, opset=20)
    assert opset_of(path) == 20
    path.unlink()
    try:
        export_onnx(net, x, path, opset=7)
    except ExportError as error:
        assert not path.exists()
        lowest = int(str(error).rpartition(" ")[2])
        export_onnx(net, x, path, opset=lowest)
        assert opset_of(path) == lowest > 7
    else:
        assert opset_of(path) == 7
