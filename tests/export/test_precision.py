"""ONNX files of a lower precision than the model's: float16, and whole numbers of 8 bits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

pytest.importorskip("onnxruntime", reason="needs the extra export")
pytest.importorskip("onnxscript", reason="needs the extra export")

from export.nets import Classes, Pair, Segmenter, halved
from lightning_taylor.export.int8 import fitted
from lightning_taylor.export.onnx import export_onnx, onnx_session
from lightning_taylor.export.verified_write import Exported, ExportError
from lightning_taylor.utilities.calls import Inputs


class Digits(nn.Module):
    """Tells two kinds of images apart: bright above or bright below."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Linear(8 * 36, 2)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.conv(image))).flatten(1))


def images(count: int) -> tuple[Tensor, Tensor]:
    label = torch.arange(count) % 2
    image = torch.rand(count, 1, 8, 8)
    image[label == 0, :, :4] += 0.5
    image[label == 1, :, 4:] += 0.5
    return image, label


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(0)
    net = Digits()
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(30):
        image, label = images(32)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(image), label).backward()
        optimizer.step()
    return net.eval()


def batches(count: int = 6, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    return [images(size) for _ in range(count)]


def operators(path: Path) -> list[str]:
    import onnx

    return [node.op_type for node in onnx.load(path).graph.node]


def stored(path: Path) -> set[int]:
    """The types of the tensors that fill a file."""
    import onnx

    return {tensor.data_type for tensor in onnx.load(path).graph.initializer if len(tensor.raw_data) > 64}


@pytest.mark.slow
@pytest.mark.parametrize("precision", [16, "int8"])
def test_a_pruned_resnet_is_smaller_in_lower_precision_and_says_what_it_costs(precision: Any, tmp_path: Path) -> None:
    x = torch.randn(4, 3, 64, 64)
    net = halved(torchvision.models.resnet18(num_classes=10), x).eval()
    calibration = [torch.randn_like(x) for _ in range(6)] if precision == "int8" else None
    plain = export_onnx(net, x, tmp_path / "plain.onnx")
    exported = export_onnx(net, x, tmp_path / "net.onnx", precision=precision, calibration=calibration)
    share = {16: 0.55, "int8": 0.3}[precision]
    assert exported.bytes < share * plain.bytes
    assert exported.dynamic_batch
    assert exported.rounding is not None
    assert exported.rounding.examples == {16: 4, "int8": 12}[precision]
    given = torch.randn(7, 3, 64, 64)
    (found,) = onnx_session(exported.path)(Inputs.of(given.half() if precision == 16 else given))
    expected = net(given).detach()
    assert (found - expected).norm() < {16: 0.01, "int8": 0.25}[precision] * expected.norm()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.onnx", "plain.onnx"]


@pytest.mark.slow
def test_what_the_result_says_of_int8_is_what_the_file_does_on_the_batches_that_set_no_range(
    trained: nn.Module, tmp_path: Path
) -> None:
    given = batches(7)
    exported = export_onnx(
        trained, given[0][0][:1], tmp_path / "net.onnx", precision="int8", calibration=given, tolerance=0.9
    )
    held = torch.cat([image for image, _ in given[1::2]])
    expected, (found,) = trained(held).detach(), onnx_session(exported.path)(Inputs.of(held))
    said = exported.rounding
    assert said is not None
    assert said.examples == 24
    assert said.agreement == float((expected.argmax(1) == found.argmax(1)).double().mean()) > 0.9
    assert exported.max_difference == pytest.approx(float((expected - found).abs().max()), rel=1e-3)
    assert said.relative_difference == pytest.approx(exported.max_difference / float(expected.abs().max()), rel=1e-3)
    assert f"same top class for {said.agreement:.1%} of 24 examples" in str(exported)
    # Weights and activations are whole numbers, the normalisation is in the weights, and nothing else is of floats.
    assert stored(exported.path) <= {2, 3, 6, 1}
    assert "BatchNormalization" not in operators(exported.path)
    assert operators(exported.path).count("DequantizeLinear") >= 4


@pytest.mark.slow
def test_weights_have_seven_bits_so_that_sums_of_products_fit_into_sixteen(trained: nn.Module, tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    path = export_onnx(trained, images(1)[0], tmp_path / "net.onnx", precision="int8", calibration=batches()).path
    initializers = {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
    weights = [numpy_helper.to_array(t) for t in initializers.values() if t.data_type == onnx.TensorProto.INT8]
    assert max(abs(w.astype(int)).max() for w in weights if w.ndim > 1) == 64
    scales = [tuple(t.dims) for name, t in initializers.items() if "scale" in name and "weight" in name]
    assert (8,) in scales  # one for each channel


FORMS: dict[str, Callable[[list[tuple[Tensor, Tensor]]], Any]] = {
    "a loader's lists": lambda given: [list(batch) for batch in given],
    "tensors": lambda given: [image for image, _ in given],
    "dicts": lambda given: [{"label": label, "image": image} for image, label in given],
    "an iterator": lambda given: iter(given),
    "one tensor": lambda given: torch.cat([image for image, _ in given]),
}


def test_batches_may_come_in_any_form(trained: nn.Module, tmp_path: Path) -> None:
    from lightning_taylor.export.calibration import calibration_inputs

    given, example = batches(), Inputs.of(images(1)[0])
    expected = torch.cat([image for image, _ in given])
    for form, made in FORMS.items():
        found = calibration_inputs(made(given), example, trained.forward)
        assert torch.equal(torch.cat([inputs.args[0] for inputs in found]), expected), form
        assert not any(inputs.kwargs for inputs in found)


def test_several_inputs_are_taken_by_their_names_or_in_their_order() -> None:
    from lightning_taylor.export.calibration import calibration_inputs

    image, depth, label = torch.rand(4, 3, 6, 6), torch.rand(4, 1, 6, 6), torch.zeros(4)
    forward = Segmenter().forward
    for example in (Inputs.of({"image": image, "depth": depth}), Inputs.of((image, depth))):
        for batch in ((image, depth, label), {"depth": depth, "label": label, "image": image}):
            (found,) = calibration_inputs([batch], example, forward)
            assert [torch.equal(a, b) for a, b in zip(found.tensors, (image, depth), strict=True)] == [True, True]
            assert found.kwargs.keys() == example.kwargs.keys()
    (found,) = calibration_inputs([(image, label)], Inputs.of((image[:1], 2.0)), lambda image, scale: image)
    assert found.args[1] == 2.0


def test_a_file_for_one_batch_size_is_calibrated_with_pieces_of_that_size() -> None:
    given = [Inputs.of(torch.arange(5.0)), Inputs.of(torch.arange(5.0, 7.0))]
    assert [piece.args[0].tolist() for piece in fitted(given, 2)] == [[0, 1], [2, 3], [5, 6]]
    assert [piece.args[0].tolist() for piece in fitted(given[1:], 3)] == [[5, 6, 5]]


@pytest.mark.slow
def test_code_that_knows_its_batch_size_is_quantised_for_that_one(tmp_path: Path) -> None:
    exported = export_onnx(
        Pair(), torch.rand(2, 3, 6, 6), tmp_path / "net.onnx", precision="int8", calibration=torch.rand(80, 3, 6, 6)
    )
    assert not exported.dynamic_batch
    assert exported.rounding is not None
    assert exported.rounding.examples == 32  # of 32 + 32 + 16, in pieces of 2, the second 32


class Constant(nn.Module):
    """Has nothing that can be quantised."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.erf(image)


@pytest.fixture
def old(tmp_path: Path) -> Iterator[Path]:
    """A file that no failure may touch."""
    path = tmp_path / "net.onnx"
    path.write_text("old")
    yield path
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("net.onnx", "old")]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no calibration": ({"precision": "int8"}, "precision='int8' needs calibration=: batches of real examples"),
    "precision": ({"precision": "int4"}, "precision='int4' is none of 16, 'int8' and None"),
    "unhashable": ({"precision": [16]}, r"precision=\[16\] is none of 16"),
    "empty": ({"precision": "int8", "calibration": []}, "calibration has no batch in it"),
    "empty tensor": ({"precision": "int8", "calibration": torch.rand(0, 1, 8, 8)}, "calibration has no batch in it"),
    "used up": ({"precision": "int8", "calibration": iter(())}, "an iterator that was used up"),
    "no iterable": ({"precision": "int8", "calibration": 5}, "calibration is a int, and has to be an iterable"),
    "dict": ({"precision": "int8", "calibration": {}}, "calibration is a dict, and has to be an iterable of batches"),
    "shape": (
        {"precision": "int8", "calibration": [torch.rand(8, 1, 8, 8), torch.rand(8, 3, 8, 8)]},
        r"batch 1 of calibration has 8x3x8x8 \(float32\), where forward takes 1x1x8x8 \(float32\)",
    ),
    "type": (
        {"precision": "int8", "calibration": [torch.zeros(8, 1, 8, 8, dtype=torch.uint8)]},
        r"batch 0 of calibration has 8x1x8x8 \(uint8\)",
    ),
    "labels": ({"precision": "int8", "calibration": [[]]}, "batch 0 of calibration has 0 items, and forward takes"),
    "names": (
        {"precision": "int8", "calibration": [{"x": 1, "y": 2}]},
        "batch 0 of calibration has no image, only x, y",
    ),
    "word": ({"precision": "int8", "calibration": ["x"]}, "batch 0 of calibration has no tensor"),
    "no use": ({"calibration": [torch.rand(8, 1, 8, 8)]}, "give precision='int8' with it, not None"),
}


@pytest.mark.parametrize(("asked", "message"), WRONG.values(), ids=WRONG)
def test_a_mistake_about_precision_is_named_with_the_way_out(asked: dict[str, Any], message: str, old: Path) -> None:
    with pytest.raises(ValueError, match=message):
        export_onnx(Digits(), torch.rand(1, 1, 8, 8), old, **asked)


def test_int8_is_made_of_float32_alone(old: Path) -> None:
    for dtype in (torch.float16, torch.float64):
        net, x = Digits().to(dtype), torch.rand(2, 1, 8, 8, dtype=dtype)
        with pytest.raises(ValueError, match=f"int8 is made of float32, and here is {dtype}: export model.float()"):
            export_onnx(net, x, old, precision="int8", calibration=[x])


@pytest.mark.slow
def test_a_network_of_which_nothing_is_quantised_is_no_int8_file(old: Path) -> None:
    with pytest.raises(ExportError, match=r"ONNX Runtime quantises none of its operators \(Erf\)"):
        export_onnx(Constant(), torch.rand(2, 3), old, precision="int8", calibration=torch.rand(64, 3))


@pytest.mark.slow
def test_ranges_that_do_not_fit_the_data_are_found_by_the_batches_that_set_none(trained: nn.Module, old: Path) -> None:
    image, _ = images(8)
    with pytest.raises(ExportError, match=r"net.onnx differs from the model by .*% \(root mean square, .*25.00% is"):
        export_onnx(trained, image[:1], old, precision="int8", calibration=[image / 1000, image])


class Large(nn.Module):
    """Has numbers between its layers that float16 does not know, or calls for float32."""

    def __init__(self, factor: float, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1)
        self.factor, self.dtype = factor, dtype

    def forward(self, image: Tensor) -> Tensor:
        return self.second((self.first(image) * self.factor).to(self.dtype) / self.factor)


def test_numbers_that_overflow_on_a_gpu_are_found_on_the_cpu(old: Path) -> None:
    """ONNX Runtime computes in float32 there, and the file would seem right."""
    with pytest.raises(ExportError, match="Large in float16 gives NaN or infinity where the model does not"):
        export_onnx(Large(1e6), torch.rand(2, 1, 8, 8), old, precision=16)


def test_code_that_calls_for_float32_cannot_be_in_float16(old: Path) -> None:
    with pytest.raises(ExportError, match="Large in float16 cannot be run: RuntimeError: "):
        export_onnx(Large(1.0, torch.float32), torch.rand(2, 1, 8, 8), old, precision=16)


@pytest.mark.slow
def test_float16_is_the_file_of_half_and_leaves_the_model_as_it_was(trained: nn.Module, tmp_path: Path) -> None:
    import onnxruntime

    image, _ = images(4)
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    trained.train()
    exported = export_onnx(trained, image, tmp_path / "net.onnx", precision=16)
    assert all(module.training for module in trained.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in trained.state_dict().items())
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    assert [(given.name, given.type) for given in session.get_inputs()] == [("image", "tensor(float16)")]
    half = export_onnx(trained.half(), image.half(), tmp_path / "half.onnx")
    trained.float().eval()
    a, b = (onnx_session(each.path)(Inputs.of(image.half()))[0] for each in (exported, half))
    assert torch.equal(a, b)
    assert half.rounding is None


@pytest.mark.slow
def test_classes_may_be_others_for_as_many_examples_as_the_tolerance_says(tmp_path: Path) -> None:
    calibration = torch.rand(256, 3, 6, 6)
    exported = export_onnx(
        Classes(), calibration[:2], tmp_path / "net.onnx", precision="int8", calibration=calibration, tolerance=0.9
    )
    logits, classes = onnx_session(exported.path)(Inputs.of(calibration))
    assert exported.rounding is not None
    assert exported.rounding.agreement is not None
    assert torch.equal(logits.argmax(1), classes)


@pytest.mark.slow
def test_nothing_is_printed_logged_or_left_behind_by_the_quantisation(
    trained: nn.Module, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    root = logging.getLogger()
    before = (list(root.handlers), list(root.filters), root.level)
    exported: Exported = export_onnx(
        trained, images(1)[0], tmp_path / "net.onnx", precision="int8", calibration=batches(), opset=18
    )
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.name == "root"] == []
    assert (list(root.handlers), list(root.filters), root.level) == before
    assert list(tmp_path.iterdir()) == [exported.path]


@pytest.mark.parametrize("precision", [None, 16, "int8"])
def test_the_file_says_what_made_it_and_what_it_is_told(precision: Any, trained: nn.Module, tmp_path: Path) -> None:
    import onnxruntime

    calibration = batches() if precision == "int8" else None
    told = {"pruned": "half", "torch": "mine"}
    export_onnx(
        trained, images(1)[0], tmp_path / "net.onnx", precision=precision, calibration=calibration, metadata=told
    )
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    assert {"lightning_taylor": version("lightning-taylor"), **told}.items() <= dict(
        session.get_modelmeta().custom_metadata_map
    ).items()
