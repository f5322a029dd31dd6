"""``lightning-taylor export`` on a real pruned fit, and on every mistake that a newcomer makes."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from cli.trained_nets import Around, Fire, Forwardless, Normalised
from lightning_taylor import load_pruned
from lightning_taylor.cli.calibration import spread
from lightning_taylor.cli.checkpoint_model import INSTANTIATOR
from lightning_taylor.cli.exit import DEBUG
from lightning_taylor.recipes.classifier import ImageClassifier

pytest.importorskip("onnxruntime", reason="needs the extra export")

pytestmark = [
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.weights_only. was not set"),
]

Run = Callable[..., tuple[int, str, str]]
FORMATS = {"onnx": "net.onnx", "torch_export": "net.pt2", "state_dict": "net.pt"}


def saved(module: L.LightningModule, path: Path) -> Path:
    trainer = L.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return path


@pytest.fixture
def checkpoint(pruned_fit: Path, tmp_path: Path) -> Path:
    """A copy in an otherwise empty folder."""
    return Path(shutil.copy(pruned_fit, tmp_path / "net.ckpt"))


@pytest.fixture
def config(pruned_fit: Path) -> Path:
    return pruned_fit.parent.parent / "config.yaml"


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_a_pruned_fit_is_exported_and_compared_on_its_own_data(
    run: Run, checkpoint: Path, config: Path, name: str
) -> None:
    code, out, err = run("export", checkpoint, "--format", name, "--model", config)
    assert (code, err) == (0, "")
    path = checkpoint.with_name(FORMATS[name])
    assert path.stat().st_size < checkpoint.stat().st_size
    assert out.startswith(f"{path}: ")
    assert "inputs 8x1x8x8 (any batch size), max difference " in out
    assert "compared on examples of Digits's validation set" in out


@pytest.mark.slow
def test_the_exported_program_is_the_pruned_network(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "a.pt2"
    code, out, _ = run("export", checkpoint, "--format=torch_export", "--input-shape", 1, 1, 8, 8, "--output", output)
    assert (code, "compared on random numbers" in out) == (0, True)
    module = load_pruned(ImageClassifier, checkpoint, map_location="cpu", _class_path=None).eval()
    x = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(torch.export.load(output).module()(x), module(x))
    assert module.net.widen[0].out_channels < 96


def test_a_network_of_torchvision_is_taken_out_of_the_module_around_it(run: Run, tmp_path: Path) -> None:
    path = saved(Fire(), tmp_path / "net.ckpt")
    code, out, _ = run("export", path, "--format=state_dict", "--model=cli.trained_nets.Fire")
    record = json.loads((tmp_path / "net.json").read_text())
    assert code == 0
    assert record["builder"] == "torchvision.models.get_model"
    assert "features.0.weight" in torch.load(tmp_path / "net.pt", weights_only=True)
    assert "compared on the module's example_input_array" in out
    assert "from load_net import load; net = load()" in out


def test_a_module_that_does_more_than_call_its_network_is_kept_whole(run: Run, tmp_path: Path) -> None:
    path = saved(Normalised(classes=4), tmp_path / "net.ckpt")
    assert run("export", path, "--format=state_dict", "--model=cli.trained_nets.Normalised")[0] == 0
    record = json.loads((tmp_path / "net.json").read_text())
    assert (record["builder"], record["arguments"]) == ("cli.trained_nets.Normalised", {"classes": 4})


@pytest.mark.slow
def test_a_part_without_its_module_is_exported_by_its_name(run: Run, tmp_path: Path) -> None:
    path = saved(Forwardless(5), tmp_path / "net.ckpt")
    settings = {"model": {"class_path": "cli.trained_nets.Forwardless", "init_args": {"width": 5}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(settings))
    given = ("export", path, "--format=torch_export", "--model", tmp_path / "mine.yaml", "--input-shape", 2, 3, 8, 8)
    code, _, err = run(*given)
    assert (code, "or take a part of it, as in --submodule net" in err) == (2, True)
    assert run(*given, "--submodule=net")[0] == 0
    assert torch.export.load(tmp_path / "net.pt2").module()(torch.rand(3, 3, 8, 8)).shape == (3, 4, 4, 4)


MISTAKES = {
    "no file": (["no.ckpt", "--format=onnx"], "no file 'no.ckpt'"),
    "format": (
        ["CKPT", "--format=onx"],
        "--format: 'onx' is none of onnx, torch_export, state_dict; did you mean onnx",
    ),
    "no format": (["CKPT"], "the following arguments are required: --format"),
    "option": (["CKPT", "--fromat=onnx"], "no option '--fromat'; did you mean --format?"),
    "shape": (["CKPT", "--format=onnx", "--input-shape", "1", "x"], "expected a whole number from 1 on, got 'x'"),
    "wrong shape": (
        ["CKPT", "--format=onnx", "--input-shape", "1", "3", "8", "8"],
        "ImageClassifier.forward raised RuntimeError on inputs 1x3x8x8: ",
    ),
    "module": (["CKPT", "--format=onnx", "--model=nowhere.Net"], "--model nowhere.Net: no module is called 'nowhere'"),
    "no path": (["CKPT", "--format=onnx", "--model=Net"], "--model Net: give its import path"),
    "class": (
        ["CKPT", "--format=onnx", "--model=cli.trained_nets.Fir"],
        "cli.trained_nets has no 'Fir'; did you mean Fire?",
    ),
    "other class": (["CKPT", "--format=onnx", "--model=cli.trained_nets.Fire"], "cannot be loaded from CKPT: Error(s)"),
    "no module": (
        ["CKPT", "--format=onnx", "--model=pathlib.Path"],
        "that is Path; give a class that derives from LightningModule",
    ),
    "base class": (
        ["CKPT", "--format=onnx", "--model=lightning.LightningModule"],
        "that is LightningModule; give a class that derives from LightningModule",
    ),
    "dots": (
        ["CKPT", "--format=onnx", "--model=..Net"],
        "--model ..Net: give its import path, as in my_project.nets.Net",
    ),
    "no class": (["CKPT", "--format=onnx", "--model=os.path"], "--model os.path: that is a module; give a class"),
    "no config": (["CKPT", "--format=onnx", "--model=no.yaml"], "no configuration 'no.yaml': no such file"),
    "part": (
        ["CKPT", "--format=onnx", "--input-shape", "1", "1", "8", "8", "--submodule=nett"],
        "--submodule nett: ImageClassifier has no such part; did you mean net?",
    ),
    "folder": (["CKPT", "--format=onnx", "--output=/"], "--output / is a folder: give the name of a file in it"),
    "ending": (
        ["CKPT", "--format=state_dict", "--output=net.json", "--input-shape", "1", "1", "8", "8"],
        "net.json is for the tensors",
    ),
    "tolerance": (["CKPT", "--format=onnx", "--tolerance=low"], "--tolerance: 'low' is not a number above 0"),
    "precision": (["CKPT", "--format=onnx", "--precision=int4"], "--precision: 'int4' is none of 32, 16, int8"),
    "no onnx": (
        ["CKPT", "--format=state_dict", "--precision=16"],
        "--precision 16 goes with --format onnx, not state_",
    ),
    "no examples": (
        ["CKPT", "--format=onnx", "--precision=int8"],
        "--precision int8 needs examples: give --calibration",
    ),
    "no int8": (["CKPT", "--format=onnx", "--calibration=x.pt"], "give --precision int8 with it"),
    "no such file": (["CKPT", "--format=onnx", "--precision=int8", "--calibration=x.pt"], "x.pt: no such file"),
    "no tensor": (
        ["CKPT", "--format=onnx", "--precision=int8", "--calibration=CKPT"],
        "--calibration CKPT holds a dict, and not a tensor, or a tuple or dict of tensors",
    ),
    "no tolerance": (["CKPT", "--format=onnx", "--tolerance=-1"], "--tolerance: '-1' is not a number above 0"),
}


@pytest.mark.parametrize(("args", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_answered_in_a_line_or_two(run: Run, checkpoint: Path, args: list[str], message: str) -> None:
    code, out, err = run("export", *(arg.replace("CKPT", str(checkpoint)) for arg in args))
    assert code == 2
    assert err.startswith("lightning-taylor: error: ")
    assert message.replace("CKPT", str(checkpoint)) in err
    assert len(err.splitlines()) <= 2
    assert "Traceback" not in out + err
    assert [file.name for file in checkpoint.parent.iterdir()] == ["net.ckpt"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["16", "int8"])
def test_a_pruned_fit_is_exported_in_lower_precision_and_the_cost_is_said(
    run: Run, checkpoint: Path, config: Path, precision: str
) -> None:
    import onnx

    code, out, err = run("export", checkpoint, "--format=onnx", "--model", config, "--precision", precision)
    assert (code, err) == (0, "")
    stored = sum(t.nbytes for t in torch.load(checkpoint, weights_only=True)["state_dict"].values())
    assert checkpoint.with_suffix(".onnx").stat().st_size < {"16": 0.6, "int8": 0.4}[precision] * stored
    assert "% of the largest output (root mean square " in out
    examples = {"16": 8, "int8": 224}[precision]
    assert f"% of {examples} examples" in out
    ranges = ", with ranges of others of them" if precision == "int8" else ""
    assert f"compared on examples of Digits's validation set{ranges}; " in out
    said = {entry.key: entry.value for entry in onnx.load(checkpoint.with_suffix(".onnx")).metadata_props}
    assert (said["checkpoint"], said["model"].rpartition(".")[2]) == ("net.ckpt", "ImageClassifier")
    now = {name: list(t.shape) for name, t in torch.load(checkpoint, weights_only=True)["state_dict"].items()}
    pruned = json.loads(said["pruned"])
    assert pruned
    assert all(shapes[1] == now[name] != shapes[0] for name, shapes in pruned.items())


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["pt", "npy", "list"])
def test_the_examples_of_int8_come_from_a_file_of_tensors(run: Run, tmp_path: Path, ending: str) -> None:
    path, examples = saved(Fire(), tmp_path / "net.ckpt"), torch.rand(24, 3, 32, 32, dtype=torch.float64)
    file = tmp_path / f"examples.{ending}"
    if ending == "npy":
        np.save(file, examples.numpy())
    else:
        torch.save([examples, torch.zeros(24)] if ending == "list" else examples, file)
    given = (
        "export",
        path,
        "--format=onnx",
        "--model=cli.trained_nets.Fire",
        "--precision=int8",
        "--calibration",
        file,
    )
    code, out, err = run(*given)
    assert (code, err) == (0, "")
    assert "8 examples" in out
    assert f"compared on examples of {file}, with ranges of others of them; " in out


def test_examples_that_do_not_fit_or_are_none_end_the_command_before_a_file_is_written(
    run: Run, tmp_path: Path
) -> None:
    path = saved(Fire(), tmp_path / "net.ckpt")
    wrong = {
        "holds no example": torch.rand(0, 3, 32, 32),
        "batch 0 of calibration has 8x1x32x32 (float32), where forward takes 2x3x32x32 (float32)": torch.rand(
            8, 1, 32, 32
        ),
        "holds a int, and not a tensor": 5,
    }
    given = ("export", path, "--format=onnx", "--model=cli.trained_nets.Fire", "--precision=int8", "--calibration")
    for said, content in wrong.items():
        torch.save(content, tmp_path / "examples.pt")
        code, _, err = run(*given, tmp_path / "examples.pt")
        assert (code, said in err) == (2, True), err
    (tmp_path / "examples.npy").write_text("no array")
    code, _, err = run(*given, tmp_path / "examples.npy")
    assert (code, "examples.npy cannot be read: give tensors by torch.save, or an array in an .npy" in err) == (2, True)
    assert not (tmp_path / "net.onnx").exists()


def test_a_configuration_without_data_has_no_examples_for_int8(run: Run, tmp_path: Path) -> None:
    path = saved(Fire(), tmp_path / "net.ckpt")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"model": {"class_path": "cli.trained_nets.Fire"}}))
    code, _, err = run("export", path, "--format=onnx", "--model", tmp_path / "mine.yaml", "--precision=int8")
    assert (code, "the configuration names no data: give --calibration FILE" in err) == (2, True), err


def test_examples_are_taken_from_all_over_a_data_set_which_may_be_sorted() -> None:
    sorted_set = TensorDataset(torch.arange(3000.0))
    taken = torch.cat([batch[0] for batch in spread(DataLoader(sorted_set, batch_size=100))])
    assert len(taken) == 512
    assert (taken[0], taken[-1]) == (0, 2999)
    assert 4 <= taken.diff().min() <= taken.diff().max() <= 7
    few = torch.cat([batch[0] for batch in spread(DataLoader(TensorDataset(torch.arange(20.0)), batch_size=6))])
    assert torch.equal(few, torch.arange(20.0))
    assert sum(1 for _ in spread(iter(range(1000)))) == 64  # batches of what has no length


def test_a_file_that_is_no_checkpoint_is_refused_by_its_name(run: Run, tmp_path: Path) -> None:
    (tmp_path / "text.ckpt").write_text("hello")
    torch.save({"a": 1}, tmp_path / "other.ckpt")
    torch.save({"state_dict": {}, "hyper_parameters": {"net": Fire}}, tmp_path / "objects.ckpt")
    for name, message in (
        ("text.ckpt", "is no checkpoint: it cannot be read, or is damaged"),
        ("other.ckpt", "is no Lightning checkpoint: it has no state_dict"),
        ("objects.ckpt", "holds more than tensors and plain values; if you trust who wrote it, add --trust"),
    ):
        code, _, err = run("export", tmp_path / name, "--format=onnx")
        assert (code, err) == (2, f"lightning-taylor: error: {tmp_path / name} {message}\n") or message in err


def test_the_class_that_a_checkpoint_names_is_imported_only_if_the_user_names_it(run: Run, checkpoint: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"]["_class_path"] = "cli.trained_nets.Fire"
    torch.save(content, checkpoint)
    code, _, err = run("export", checkpoint, "--format=onnx")
    assert (code, "(it says cli.trained_nets.Fire) Give --model cli.trained_nets.Fire" in err) == (2, True)


def test_a_checkpoint_that_does_not_say_what_forward_takes_is_asked_for_with_the_config_near_it(
    run: Run, silent_fit: Path
) -> None:
    code, _, err = run("export", silent_fit, "--format=onnx")
    config = silent_fit.parent.parent / "config.yaml"
    said = f"what does ImageClassifier.forward take? Give --input-shape, as in 1 3 224 224, or --model {config}"
    assert (code, said in err) == (2, True)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["", "net"])
def test_a_checkpoint_alone_says_with_what_its_network_was_called(run: Run, checkpoint: Path, part: str) -> None:
    code, out, err = run("export", checkpoint, "--format=torch_export", *(["--submodule", part] if part else []))
    assert (code, err) == (0, "")
    assert "compared on random numbers of the shapes that the fit had" in out
    assert "inputs 1x1x8x8 (any batch size)" in out


def test_a_missing_extra_is_answered_with_what_to_install(
    run: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_taylor.export.onnx.find_spec", lambda name: None)
    code, _, err = run("export", checkpoint, "--format=onnx", "--input-shape", 1, 1, 8, 8)
    assert (code, "pip install 'lightning-taylor[export]'" in err) == (2, True)


def test_a_mistake_can_be_asked_for_its_traceback(run: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEBUG, "true")
    with pytest.raises(RuntimeError, match="expected input"):
        run("export", checkpoint, "--format=onnx", "--input-shape", 1, 3, 8, 8)


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_what_is_there_already_stays_unless_the_user_says_otherwise(run: Run, tmp_path: Path, name: str) -> None:
    path = saved(Fire(), tmp_path / "net.ckpt")
    given = ("export", path, f"--format={name}", "--model=cli.trained_nets.Fire")
    mine = tmp_path / ("net.json" if name == "state_dict" else FORMATS[name])  # which the user does not even name
    mine.write_text("mine")
    before = bytes_in(tmp_path)
    code, _, err = run(*given)
    assert (code, f"{mine} exists: give another --output, or --overwrite to replace it" in err) == (2, True)
    assert bytes_in(tmp_path) == before
    assert run(*given, "--overwrite")[0] == 0
    assert mine.read_bytes() != b"mine"


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_the_checkpoint_is_never_replaced_by_its_export(run: Run, tmp_path: Path, overwrite: list[str]) -> None:
    path = saved(Fire(), tmp_path / "net.pt")  # where its state dict would go
    (tmp_path / "link.onnx").symlink_to(path)
    (tmp_path / "file").write_text("mine")
    before = bytes_in(tmp_path)
    for name, output, message in (
        ("state_dict", [], "net.pt is the checkpoint itself: give another --output"),
        ("onnx", ["--output", tmp_path / "link.onnx"], "link.onnx is the checkpoint itself"),
        ("onnx", ["--output", tmp_path / "file" / "net.onnx"], "file is a file, so nothing can be in it"),
    ):
        code, _, err = run("export", path, f"--format={name}", *output, *overwrite, "--model=cli.trained_nets.Fire")
        assert (code, message in err) == (2, True), err
    assert bytes_in(tmp_path) == before


def test_the_name_of_a_file_is_no_code(run: Run, tmp_path: Path) -> None:
    path = saved(Fire(), tmp_path / 'a"+str(1÷0)+"\\.ckpt')
    assert run("export", path, "--format=state_dict", "--model=cli.trained_nets.Fire")[0] == 0


def test_nothing_that_a_checkpoint_names_is_imported_unless_the_user_trusts_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stranger.py").write_text("from torch import nn\n\nclass Net(nn.Conv2d):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    given = {"net": {"class_path": "stranger.Net", "init_args": dict.fromkeys(("in_channels", "out_channels"), 3)}}
    given["net"]["init_args"]["kernel_size"] = 1
    module = Around(nn.Conv2d(3, 3, 1))
    state = {"state_dict": module.state_dict(), "pytorch-lightning_version": "2.6.0"}
    path = tmp_path / "net.ckpt"
    for place in ("hyper_parameters", "hparams"):
        torch.save({**state, place: {**given, "_instantiator": INSTANTIATOR}}, path)
        shape = ("--input-shape", 1, 3, 4, 4)
        asked = ("export", path, "--format=torch_export", "--model=cli.trained_nets.Around", *shape)
        code, _, err = run(*asked, "--overwrite")
        assert (code, "names stranger.Net, to be imported and called; if you trust" in err) == (2, True), err
        with pytest.raises(ValueError, match=r"names stranger.Net, which loading it would import and call"):
            load_pruned(Around, path)
        with path.open("rb") as file, pytest.raises(ValueError, match=r"names stranger.Net"):
            load_pruned(Around, file)
        assert "stranger" not in sys.modules
    assert run(*asked, "--trust")[0] == 0
    assert isinstance(load_pruned(Around, path, weights_only=False).net, sys.modules["stranger"].Net)
    assert load_pruned(Around, path).net.out_channels == 3  # the program knows it now
    monkeypatch.delitem(sys.modules, "stranger")


def test_help_reads_like_documentation(run: Run) -> None:
    code, out, _ = run("export", "--help")
    assert code == 0
    for word in (
        "examples:",
        "formats:",
        "--input-shape",
        "--submodule",
        "--precision",
        "--calibration",
        "rebuilds the network without",
    ):
        assert word in out
