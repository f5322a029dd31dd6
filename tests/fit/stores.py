"""What is in the stores of four loggers, read back with the readers of their own libraries where there are any."""

from __future__ import annotations

import csv
import json
import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Series = dict[str, list[tuple[int, float]]]


@dataclass
class Stored:
    """Names are as they were logged, ``pruning/`` included; settings are flat, their values texts."""

    scalars: Series = field(default_factory=lambda: defaultdict(list))
    settings: dict[str, str] = field(default_factory=dict)
    histograms: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    figures: set[str] = field(default_factory=set)
    tables: dict[str, list[list[Any]]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)


def flat(nested: Any, name: str = "") -> dict[str, str]:
    if not isinstance(nested, Mapping):
        return {name: str(nested)}
    return {k: v for key, item in nested.items() for k, v in flat(item, f"{name}/{key}" if name else key).items()}


def tensorboard(folder: Path) -> Stored:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0, "images": 0, "tensors": 0})
    events.Reload()
    tags: Any = events.Tags()
    found = Stored(figures=set(tags["images"]))
    for name in tags["scalars"]:
        found.scalars[name] = [(event.step, event.value) for event in events.Scalars(name)]
    for name in tags["histograms"]:
        found.histograms[name] = [event.step for event in events.Histograms(name)]
    for name in tags["tensors"]:
        found.texts[name.removesuffix("/text_summary")] = events.Tensors(name)[-1].tensor_proto.string_val[0].decode()
    for content in events.PluginTagToContent("hparams").values() if "_hparams_" in str(events.summary_metadata) else ():
        for name, value in HParamsPluginData.FromString(content).session_start_info.hparams.items():
            kind = value.WhichOneof("kind")
            found.settings[name] = f"{getattr(value, kind):g}" if kind == "number_value" else str(getattr(value, kind))
    found.files = {path.name for path in folder.iterdir()}
    return found


def comma_separated(folder: Path) -> Stored:
    settings = folder / "hparams.yaml"  # is written with the first hyperparameters
    found = Stored(settings=flat(yaml.safe_load(settings.read_text())) if settings.exists() else {})
    with (folder / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name != "step":
                    found.scalars[name].append((int(row["step"]), float(value)))
    found.files = {path.name for path in folder.iterdir()}
    return found


def weights_and_biases(folder: Path) -> Stored:
    """An offline run, before it is synchronised."""
    (store,) = folder.rglob("*.wandb")
    found, files = Stored(), store.parent / "files"
    for record in _records(store):
        for item in [*record.run.config.update, *record.config.update]:
            found.settings |= flat(json.loads(item.value_json), item.key or "/".join(item.nested_key))
        found.files |= {file.path for file in record.files.files}
        row: dict[str, Any] = defaultdict(dict)
        for item in record.history.item:
            name, *inner = item.nested_key or [item.key]
            row[name] = {**row[name], inner[0]: json.loads(item.value_json)} if inner else json.loads(item.value_json)
        step = row.get("trainer/global_step", -1)
        for name, value in row.items():
            kind = value.get("_type") if isinstance(value, dict) else None
            if kind == "histogram":
                found.histograms[name].append(step)
            elif kind == "images/separated":
                assert all((files / image).stat().st_size for image in value["filenames"])
                found.figures.add(name)
            elif kind == "table-file":
                found.tables[name] = json.loads((files / value["path"]).read_text())["data"]
            elif kind == "html-file":
                found.texts[name] = (files / value["path"]).read_text()
            elif isinstance(value, int | float):
                found.scalars[name].append((step, value))
    return found


def mlflow(uri: str) -> Stored:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    found = Stored(settings=dict(run.data.params))
    for name in run.data.metrics:
        history = client.get_metric_history(run.info.run_id, name)
        found.scalars[name] = [(metric.step, metric.value) for metric in history]
    root = Path(run.info.artifact_uri)
    for path in root.rglob("*"):
        name = str(path.relative_to(root).with_suffix(""))
        if path.suffix == ".png":
            found.figures.add(name)
        elif path.suffix == ".md":
            found.texts[name] = path.read_text()
        elif path.parent.name == "tables":
            found.tables[name] = json.loads(path.read_text())["data"]
        elif path.is_file():
            found.files.add(path.name)
    return found


def _records(path: Path) -> Iterator[Any]:
    """W&B's journal: the blocks of a LevelDB log after seven bytes of its own, a protocol buffer per record."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # all of a record, or its last part
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""
