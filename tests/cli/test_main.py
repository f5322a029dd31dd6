"""The console script as a newcomer tries it: wrong input first, then every subcommand on the digits."""

from __future__ import annotations

import inspect
import json
import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("jsonargparse", reason="needs the extra cli")
pytest.importorskip("sklearn", reason="needs the extra recipes")

from lightning_taylor import cli
from lightning_taylor.checkpoint.load import load_pruned
from lightning_taylor.cli.commands import COMMANDS, TRAINER_COMMANDS
from lightning_taylor.cli.exit import DEBUG
from lightning_taylor.cli.main import LOGS
from lightning_taylor.cli.shipped_configs import resolve_configs
from lightning_taylor.fit.callback import TaylorPruning
from lightning_taylor.recipes.classifier import ImageClassifier

pytestmark = [
    # Lightning 2.6 calls what the newest jsonargparse is about to rename.
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists and is not empty"),
]

SHORT = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=6", "--trainer.limit_val_batches=2",
         "--trainer.limit_test_batches=2", "--trainer.limit_predict_batches=2",
         "--trainer.accelerator=cpu")  # fmt: skip
QUICK = ("--trainer.callbacks.schedule=null", "--trainer.callbacks.measure_latency=false")
FOLDER = Path("lightning_logs/version_0")
Run = Callable[..., tuple[int, str, str]]


class SingleLinear(L.LightningModule):
    """Its only channels are its outputs, which no pruning may touch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(64, 10)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0].flatten(1)), batch[1])

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Nothing."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Broken(SingleLinear):
    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        raise ValueError("a bug of the user's")


class CtrlC(L.Callback):
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 3:
            raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """In an empty folder, and without what seed_everything and Lightning's Ctrl-C leave behind."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line in this process and gives its exit code, stdout and stderr."""

    def lightning_taylor(*args: str) -> tuple[int, str, str]:
        code = 0
        try:
            cli.main(args)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1 if stop.code else 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return lightning_taylor


def edited(old: str, new: str) -> str:
    """A copy of the main job's configuration with something wrong in it."""
    text = cli.shipped_configs()["digits"].read_text()
    assert text.count(old) == 1
    Path("mine.yaml").write_text(text.replace(old, new))
    return "mine.yaml"


def assert_answered(answer: tuple[int, str, str], expected: int, message: str) -> None:
    code, out, err = answer
    assert code == expected
    assert message in err
    assert err.startswith("lightning-taylor: error: ")
    assert len(err.splitlines()) <= 2
    assert len(err) < 400
    assert "Traceback" not in out + err


CHOICES = (
    f"choose one of fit, validate, test, predict, {', '.join(COMMANDS)}; `lightning-taylor fit` alone runs a small"
)
WRONG = {
    "nothing": ([], CHOICES),
    "subcommand": (["fitt"], "no command 'fitt'; did you mean fit?"),
    "command": (["inspct"], "no command 'inspct'; did you mean inspect?"),
    "option": (["fit", "--confg", "digits"], "no option 'confg'; did you mean config?"),
    "no option": (["fit", "digits"], "no option 'digits'; did you mean --config digits?"),
    "two types": (
        ["fit", "--trainer.callbacks.target=many"],
        "trainer.callbacks.target: Expected float; no class is called 'many'",
    ),
    "prefix": (["fit", "--trainer.max_epoch=3"], "no option 'trainer.max_epoch'; did you mean trainer.max_epochs or "),
    "callback": (
        ["fit", "--trainer.callbacks.taget=0.3"],
        "trainer.callbacks: TaylorPruning has no option 'taget'; did you mean target?",
    ),
    "model": (["fit", "--model.lrr=1"], "model: ImageClassifier has no option 'lrr'; did you mean lr?"),
    "unlike any": (["fit", "--data.zzz=5"], "Digits has no option 'zzz'; there are batch_size, size, channels"),
    "type": (["fit", "--model.lr=fast"], "model.lr: Expected float. Got value: fast"),
    "target": (["fit", "--trainer.callbacks.target=5"], "target flops=5.0 is not a fraction of the dense model in (0"),
    "model name": (["fit", "--model.model=resnet81"], "no model is called 'resnet81'; the nearest names are resnet18"),
    "class name": (
        ["fit", "--model=ImageClassifer"],
        "model: no class is called 'ImageClassifer'; give its import path; did you mean ImageCl",
    ),
    "class path": (
        ["fit", "--trainer.callbacks=lightning_taylor.TaylorPrunin"],
        "'lightning_taylor' has no attribute 'TaylorPrunin'; did you mean TaylorPruning?",
    ),
    "configuration": (["fit", "--config", "digit"], "no configuration 'digit': no such file, and the ones that ship"),
    "root": (["fit", "--config=flowers12", "--data.root=nowhere"], "no folder nowhere/train: ImageFolder expects"),
    "weights": (["fit", "--model.weights=no.pt"], "weights='no.pt': no such file, and no such weights enum"),
    "classes": (["fit", "--model.num_classes=3"], "makes 3 classes and the data has 10: leave num_classes out"),
    "too short": (
        ["fit", "--trainer.callbacks.schedule=OneShot", "--trainer.callbacks.schedule.step=421"],
        "needs 421 optimizer steps to reach the target, but the fit has",
    ),
    "checkpoint": (["test", "--ckpt_path=no.ckpt"], "Checkpoint file not found: no.ckpt"),
}


@pytest.mark.parametrize(("args", "message"), WRONG.values(), ids=WRONG)
def test_a_mistake_on_the_command_line_is_answered_in_a_line_or_two(run: Run, args: list[str], message: str) -> None:
    assert_answered(run(*args), 2, message)


TYPOS = {
    "callback": ("target:", "taget:", "trainer.callbacks: TaylorPruning has no option 'taget'; did you mean target?"),
    "schedule": ("{start:", "{strat:", "trainer.callbacks.schedule: Gradual has no option 'strat'; did you mean start"),
    "trainer": ("max_epochs:", "max_epoch:", "no option 'trainer.max_epoch'; did you mean trainer.max_epochs"),
    "part": ("model:\n", "modle:\n", "did you mean model?"),
    "model": ("lr:", "lrate:", "model: ImageClassifier has no option 'lrate'; there are model, weights"),
    "target": (
        "target: 0.5",
        "target: 5",
        "target flops=5.0 is not a fraction of the dense model in (0, 1]: for 5 per",
    ),
    "resource": ("target: 0.5", "target: {flop: 0.5}", "'flop'"),
    "type": ("batch_size: 64", "batch_size: many", "data.batch_size: Expected int. Got value: many"),
    "syntax": ("max_epochs: 20", "max_epochs: [20", "mine.yaml is not YAML: while parsing a flow sequence"),
}


@pytest.mark.parametrize(("old", "new", "message"), TYPOS.values(), ids=TYPOS)
def test_a_mistake_in_a_configuration_is_answered_in_a_line_or_two(run: Run, old: str, new: str, message: str) -> None:
    assert_answered(run("fit", "--config", edited(old, new)), 2, message)


def test_a_folder_in_place_of_a_configuration_is_named(run: Run) -> None:
    Path("logs").mkdir()
    assert_answered(
        run("fit", "--config", "logs"), 2, "logs is a folder: give the configuration in it, such as logs/co"
    )


def test_a_mistake_in_a_file_is_told_from_one_on_the_command_line(run: Run) -> None:
    path = edited("batch_size: 64", "batchsize: 64")
    assert_answered(run("fit", "--config", path), 2, "error: mine.yaml: data: Digits has no option 'batchsize'")
    path = edited("data:", "date:")
    assert_answered(run("fit", "--config", path), 2, "error: mine.yaml: no option 'date'; did you mean data")
    answer = run("fit", "--config", edited("lr: 3.0e-3", "lr: 0.1"), "--model.lr=fast")
    assert_answered(answer, 2, "error: model.lr: Expected float. Got value: fast")


@pytest.mark.parametrize("subcommand", ["fit", "validate"])
def test_a_checkpoint_of_another_network_is_told_from_a_bug(run: Run, subcommand: str) -> None:
    torch.save({"state_dict": {"net.weight": torch.zeros(2)}, "pytorch-lightning_version": L.__version__}, "other.ckpt")
    code, _, err = run(subcommand, "--ckpt_path=other.ckpt", *SHORT, *QUICK)
    assert code == 2
    assert "the checkpoint is of another network than the configuration's model: ImageClassifier" in err
    assert "Traceback" not in err


def test_a_file_that_is_no_checkpoint_is_named(run: Run) -> None:
    Path("words.ckpt").write_text("words")
    answer = run("validate", "--ckpt_path=words.ckpt", *SHORT)
    assert_answered(answer, 2, "words.ckpt is no checkpoint of tensors and plain values, or is damaged")


@pytest.mark.slow
def test_a_class_in_the_folder_of_the_call_goes_by_its_import_path(run: Run) -> None:
    """And it may have data of its own."""
    source = (
        "from lightning_taylor.recipes.classifier import ImageClassifier\n"
        "from lightning_taylor.recipes.digits import Digits\n"
        "class Mine(ImageClassifier):\n"
        "    def train_dataloader(self):\n"
        "        data = Digits()\n"
        "        data.setup('fit')\n"
        "        return data.plain_train_dataloader()\n"
        "    val_dataloader = train_dataloader\n"
    )
    Path("mine_of_this_test.py").write_text(source)
    before = list(sys.path)
    code, _, err = run("fit", "--model=mine_of_this_test.Mine", "--model.num_classes=10", *SHORT)
    assert (code, sys.path) == (0, before), err
    assert list(FOLDER.glob("checkpoints/*.ckpt"))


@pytest.mark.parametrize("content", ["", "just a word", "- a\n- list"])
def test_a_file_that_is_no_configuration_is_refused_by_its_name(run: Run, content: str) -> None:
    Path("mine.yaml").write_text(content)
    code, _, err = run("fit", "--config", "mine.yaml")
    assert (code, "mine.yaml holds no settings" in err) == (2, True)


def test_a_model_that_cannot_be_pruned_is_an_error_of_the_run_with_the_reason(run: Run) -> None:
    model = ("--model", f"{__name__}.SingleLinear", "--data=Digits")
    answer = run("fit", *model, "--trainer.callbacks=lightning_taylor.TaylorPruning", *SHORT)
    assert_answered(answer, 1, "net")
    assert not (FOLDER / "pruning.json").exists()


def test_a_missing_extra_is_answered_with_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_taylor.cli.extras.find_spec", lambda name: None if name == "sklearn" else object())
    assert_answered(run("fit"), 1, "missing sklearn: pip install 'lightning-taylor[cli,recipes]'")


def test_a_bug_of_the_users_keeps_its_traceback() -> None:
    with pytest.raises(ValueError, match="a bug of the user's"):
        cli.main(["fit", "--model", f"{__name__}.Broken", "--data=Digits", *SHORT])


@pytest.mark.slow
def test_a_mistake_can_be_asked_for_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEBUG, "true")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        cli.main(["fit", "--config=flowers12", "--data.root=nowhere"])
    with pytest.raises(ValueError, match="target flops"):
        cli.main(["fit", "--trainer.callbacks.target=5"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Detected KeyboardInterrupt")
def test_a_checkpoint_of_the_command_line_loads_without_it(run: Run) -> None:
    run("fit", *SHORT, *QUICK, "--trainer.callbacks.target=0.5")
    (path,) = FOLDER.glob("checkpoints/*.ckpt")
    model = load_pruned(ImageClassifier, path)
    widths = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert widths == {
        n: tuple(t.shape) for n, t in torch.load(path, weights_only=True)["state_dict"].items() if n in widths
    }
    assert type(model) is ImageClassifier


@pytest.mark.slow
def test_ctrl_c_ends_the_fit_quietly_and_leaves_no_report_of_it(run: Run) -> None:
    late = ("--trainer.callbacks.schedule=OneShot", "--trainer.callbacks.schedule.step=6")
    code, out, err = run("fit", *SHORT, *QUICK, *late, f"--trainer.callbacks+={__name__}.CtrlC")
    assert code == 130
    assert "Traceback" not in out + err
    assert "Target" not in out
    assert not list(Path().rglob("*pruning.json*"))


def test_ctrl_c_before_the_fit_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.TaylorCLI, "parse_arguments", interrupt)
    assert_answered(run("fit"), 130, "interrupted")


def test_help_explains_every_argument_of_the_callback(run: Run) -> None:
    code, out, _ = run("fit", "--trainer.callbacks.help=lightning_taylor.TaylorPruning")
    assert code == 0
    for name in inspect.signature(TaylorPruning).parameters:
        entry = out.split(f"--trainer.callbacks.{name} ")[-1].split("\n  --")[0]
        assert len(entry.split("(type:")[0].split()) > 4, f"{name} is not explained"


def test_help_and_version_are_no_errors(run: Run) -> None:
    for args, word in ((["--help"], "fit"), (["fit", "--help"], "trainer.max_epochs"), (["--version"], "0.")):
        code, out, err = run(*args)
        assert (code, word in out, err) == (0, True, "")


def test_the_commands_of_the_trainer_are_those_of_lightning_cli() -> None:
    assert set(TRAINER_COMMANDS) == set(cli.TaylorCLI.subcommands())


QUICK_ANSWERS = {"--version": 0, "--help": 0, "fitt": 2, "": 2}


@pytest.mark.parametrize("word", QUICK_ANSWERS)
def test_what_needs_no_network_is_answered_without_torch(word: str) -> None:
    """To import it takes seconds."""
    code = (
        "import sys; from lightning_taylor.cli import main\n"
        f"try: main({word.split()})\nexcept SystemExit as stop: assert stop.code == {QUICK_ANSWERS[word]}\n"
        "assert not {'torch', 'lightning', 'numpy', 'jsonargparse'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_extra_of_an_export_is_named_before_torch_is_imported() -> None:
    code = (
        "import sys; sys.modules['onnxruntime'] = None; from lightning_taylor.cli import main\n"
        "try: main('export no.ckpt --format onnx --model a.yaml'.split())\n"
        "except SystemExit as stop: assert stop.code == 1\n"
        "assert not {'torch', 'lightning', 'numpy', 'jsonargparse'} & set(sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert answer.stderr.endswith("error: missing onnxruntime: pip install 'lightning-taylor[export,cli]'\n")


BARE = """
import sys
for name in ("jsonargparse", "docstring_parser", "sklearn", "onnx", "onnxruntime", "onnxscript"):
    sys.modules[name] = None
from lightning_taylor.cli import main
for line in sys.argv[1:]:
    try:
        main(line.split())
    except SystemExit:
        pass
"""
WITHOUT_EXTRAS = {
    "fit": "missing jsonargparse, docstring_parser, sklearn: pip install 'lightning-taylor[cli,recipes]'",
    "fit --config flowers12": "missing jsonargparse, docstring_parser: pip install 'lightning-taylor[cli]'",
    "inspect --config digits": "missing jsonargparse, docstring_parser: pip install 'lightning-taylor[cli]'",
    "compare no.ckpt": "missing jsonargparse, docstring_parser: pip install 'lightning-taylor[cli]'",
    "export no.ckpt --format onnx": "missing onnx, onnxruntime, onnxscript: pip install 'lightning-taylor[export]'",
    "export no.ckpt --format state_dict": "no file 'no.ckpt'",
    "benchmark no.ckpt": "no file 'no.ckpt'",
    "inspect no.ckpt": "no file 'no.ckpt'",
}


@pytest.mark.slow
def test_without_the_extras_a_command_works_or_says_what_to_install() -> None:
    command = [sys.executable, "-W", "ignore", "-c", BARE, *WITHOUT_EXTRAS]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.stderr.splitlines() == [f"lightning-taylor: error: {said}" for said in WITHOUT_EXTRAS.values()]


def test_the_console_script_is_this_function() -> None:
    (script,) = entry_points(group="console_scripts", name="lightning-taylor")
    assert script.load() is cli.main


@pytest.mark.slow
def test_a_short_fit_of_the_digits_ends_with_the_table_and_the_same_as_data(run: Run) -> None:
    code, out, _ = run("fit", "--config", "digits", *SHORT, *QUICK)
    assert code == 0
    assert "Target met" in out
    assert "FLOPs" in out
    assert "The same as data: " in out
    found = json.loads((FOLDER / "pruning.json").read_text())
    assert found["met"]
    assert found["asked"] == {"flops": 0.5}
    assert found["achieved"]["flops"] <= 0.5
    said, _, commands = out.partition("Go on with this checkpoint:\n")
    assert max(map(len, said.splitlines())) <= 80
    # What can be pasted is not broken into lines.
    assert "load_pruned(" in commands
    assert "lightning-taylor export " in commands
    assert (FOLDER / "config.yaml").exists()
    assert (FOLDER / "metrics.csv").exists()


@pytest.mark.slow
def test_the_screen_shows_nothing_that_the_user_can_do_nothing_about(run: Run) -> None:
    seen: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    # Where both names of Lightning are imported, the later one's logger gets the messages of either.
    logs = [logging.getLogger(name) for name in LOGS]
    for log in logs:
        log.addHandler(handler)
    try:
        _, out, err = run("fit", *SHORT, *QUICK)
    finally:
        for log in logs:
            log.removeHandler(handler)
    assert not [m for m in seen if "Tip" in m or "TPU" in m or "estimate" in m]
    assert any("`max_epochs=1` reached" in message for message in seen)
    assert "Total FLOPs" not in out
    assert "Warning" not in err
    assert not [log for log in logs if log.filters]


@pytest.mark.slow
def test_a_fit_without_a_logger_can_be_run_again(run: Run) -> None:
    for _ in range(2):
        assert run("fit", *SHORT, *QUICK, "--trainer.logger=false")[0] == 0
    assert not Path("config.yaml").exists()
    assert Path("pruning.json").exists()


@pytest.mark.slow
def test_a_checkpoint_of_an_unpruned_fit_can_be_validated_tested_and_predicted_with(run: Run) -> None:
    assert run("fit", "--model=ImageClassifier", "--data=Digits", *SHORT)[0] == 0
    (checkpoint,) = Path().rglob("*.ckpt")
    for subcommand, word in (("validate", "val_acc"), ("test", "test_acc"), ("predict", "predictions of 2 batches")):
        code, out, _ = run(subcommand, f"--ckpt_path={checkpoint}", *SHORT)
        assert (code, word in out) == (0, True)
    (predictions,) = Path().rglob("predictions.pt")
    assert [p.shape for p in torch.load(predictions)] == [(64,), (64,)]


def test_who_chooses_a_model_does_not_get_the_main_jobs_callbacks() -> None:
    assert resolve_configs(["fit", "--model=Mine"]) == ["fit", "--model=Mine"]
    assert resolve_configs(["fit", "--model.lr=1"])[1] == "--config"
    assert resolve_configs(["fit", "-c", "digits"])[1:] == ["-c", str(cli.shipped_configs()["digits"])]
    assert resolve_configs(["--help"]) == ["--help"]
