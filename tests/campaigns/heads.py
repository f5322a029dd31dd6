"""Do timm's networks still know their widths after a pruning, so that a new head fits?

``uv run --with timm python tests/campaigns/heads.py [--models 'resnet*' ...] [--out FILE] [--table [--write FILE]]``

A third of every group goes at random; then ``num_features``, ``head_hidden_size`` and ``feature_info`` must tell the
widths of what the network computes, and ``reset_classifier(7)`` must give a network that runs. Nothing is downloaded.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch import Tensor, nn

from campaigns.children import outcome
from campaigns.foreign import timm_model
from campaigns.table import Store, arguments, versions, write_section
from lightning_taylor import prune_channels, trace_channels
from lightning_taylor.utilities.calls import tensors_in

NAMES = """
    poolformerv2_s12 skresnet18 cspnext_tiny lcnetv2_small cpubone_nano iformer_t lowformer_b0 csatv2
    test_vit_relpos visformer_tiny edgenext_xx_small efficientvit_b0 fasternet_t0 ese_vovnet19b_slim_dw
    hardcorenas_a inception_next_atto legacy_seresnet18 mambaout_femto mobilevit_xxs nf_regnet_b0 fastvit_t8 dpn48b
    pit_ti_224 pvt_v2_b0 repghostnet_050 repvit_m0_9 resnest14d selecsls42 shvit_s1 swiftformer_xs test_maxvit
    tiny_vit_5m_224 deit_tiny_distilled_patch16_224 efficientvit_m0 efficientformer_l1 focalnet_tiny_srf
    efficientvim_m1 inception_v4 levit_128s botnet26t_256 coat_lite_tiny hiera_tiny_224 nest_tiny_jx
    eva02_tiny_patch14_224 convmixer_768_32 efficientformerv2_s0 convit_tiny crossvit_tiny_240 xcit_nano_12_p16_224
    resnet18 resnetv2_50 efficientnet_b0 mobilenetv3_small_100 mobilenetv4_conv_small_035 convnext_atto densenet121
    vgg11_bn regnety_002 ghostnetv2_100 repvgg_a0 dla46x_c res2net50_14w_8s cs3darknet_s rexnet_100 lcnet_050
    mixnet_s xception41 starnet_s1 hgnetv2_b0 vit_tiny_patch16_224 swin_tiny_patch4_window7_224 hrnet_w18_small
""".split()


@dataclass
class Row:
    """What became of a network.

    Attributes:
        model: its name.
        status: "right", "untouched" where the widths that are told may not go, or what is wrong.
        features: ``num_features`` before and after.
        stages: ``feature_info`` after, with the true widths where they differ.
        note: what went wrong, in words.
        seconds: by the clock.
    """

    model: str
    status: str = "error"
    features: str = ""
    stages: str = ""
    note: str = ""
    seconds: float = 0.0


def measure(name: str) -> dict[str, Any]:
    """The row of one network."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    row, began = Row(name), time.monotonic()
    model: Any
    model, (x,) = timm_model(name)
    model.eval()
    dense = model.num_features
    sums = not _has(model.forward_features(x), dense)
    graph = trace_channels(model, x, allow_inexact_norms=True)
    prune_channels(model, graph, graph.sample(0.3, torch.Generator().manual_seed(1)))
    features, told, true = model.forward_features(x), stages(model), returned(model, x)
    row.features = f"{dense} → {model.num_features}"
    wrong = [f"{part}: {told[part]} for {true[part]}" for part in told if part in true and told[part] not in true[part]]
    row.stages = ", ".join(f"{width}{'' if part in true else '?'}" for part, width in told.items())
    row.stages += "".join(f"; {text}" for text in wrong)
    if not sums and not _has(features, model.num_features):
        wrong.append(f"num_features {model.num_features} for {[tuple(t.shape) for t in tensors_in(features)]}")
    try:
        model.reset_classifier(7)
        ends = tuple(model.eval()(x).shape)
    except Exception as error:
        ends = ()
        wrong.append(f"reset_classifier: {type(error).__name__}: {error}")
    if ends and ends[-1] != 7:
        wrong.append(f"the new head gives {ends}")
    row.status = "wrong" if wrong else "right" if model.num_features < dense else "untouched"
    wrong += ["before the pruning, too, no tensor was as wide as num_features"] if sums else []
    row.note, row.seconds = "; ".join(wrong), round(time.monotonic() - began, 1)
    return asdict(row)


def _has(features: Any, width: int) -> bool:
    """Whether a tensor among the features is so wide."""
    return any(width in tensor.shape[1:] for tensor in tensors_in(features))


def stages(model: nn.Module) -> dict[str, int]:
    """Name of a part -> the channels that ``feature_info`` tells of it."""
    info: Any = getattr(model, "feature_info", [])
    rows = info.info if hasattr(info, "info") else info
    return {row["module"]: row["num_chs"] for row in rows if row.get("module")}


def returned(model: nn.Module, x: Tensor) -> dict[str, tuple[int, ...]]:
    """Name of a part -> the sizes of all dimensions, but the first, of the tensors that it returns."""
    sizes: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Any:
        return lambda _m, _a, out: sizes.update({name: tuple(n for t in tensors_in(out) for n in t.shape[1:])})

    parts = dict(model.named_modules())
    handles = [parts[name].register_forward_hook(note(name)) for name in stages(model) if name in parts]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return sizes


def main() -> None:
    """Run the campaign, or print its table."""
    given, chosen = arguments(__doc__, NAMES, "heads.jsonl")
    store = Store(given.out, Row)
    for name in chosen if not given.table else ():
        if name not in store.rows:
            with tempfile.TemporaryDirectory() as folder:
                row, status, note = outcome(lambda name=name: measure(name), given.timeout, Path(folder) / "log")
            made = store.add(row or asdict(Row(name, note=f"{status}: {note}"[-400:])))
            print(f"{made.status:9} {name:36} {made.features:14} {made.stages[:60]} {made.note[:160]}", flush=True)
    if given.table:
        rows = sorted((store.rows[name] for name in chosen if name in store.rows), key=lambda row: row.model)
        late = sum(row.note.startswith("timeout") for row in rows)
        rows = [row for row in rows if not row.note.startswith("timeout")]
        untouched = sum(row.status == "untouched" for row in rows)
        right = untouched + sum(row.status == "right" for row in rows)
        lines = [
            "## New heads after a pruning",
            "",
            f"{right} of {len(rows)} right, {untouched} of them untouched. Measured and written by "
            f"`tests/campaigns/heads.py`, with {versions('torch', 'timm')}. A third of every group goes; "
            "`num_features` and `feature_info` must tell what is left, and `reset_classifier(7)` must run. "
            "*untouched*: these widths may not go. *?*: no part of that name is called, so that nobody can check it."
            + (f" {late} more that were given up on a busy processor are left out." if late else ""),
            "",
            "| model | status | num_features | feature_info | in words |",
            "|---|---|---|---|---|",
            *(
                f"| {row.model} | {row.status} | {row.features} | {row.stages} | {' '.join(row.note.split())[:200]} |"
                for row in rows
            ),
        ]
        text = "\n".join(lines)
        if given.write:
            write_section(given.write, "heads", text)
        else:
            print(text)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
