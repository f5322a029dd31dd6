from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from lightning_taylor.recipes.clips import ClipFolder

MakeClips = Callable[..., Path]
GESTURES = ("push", "swipe left", "swipe right")


def prepared(root: Path, **options: Any) -> ClipFolder:
    data = ClipFolder(str(root), **{"clips": 2, "frames": 4, "size": 8, "num_workers": 0, "batch_size": 2, **options})
    data.setup("fit")
    return data


def greys(video_TCFHW: Tensor) -> list[int]:
    """The frames that a video was made of: each has its own number for a grey value."""
    return ((video_TCFHW.mean(dim=(1, 3, 4)).flatten() + 1) * 127.5).round().int().tolist()


def test_a_video_comes_as_clips_with_its_frames_in_order(make_clips: MakeClips) -> None:
    data = prepared(make_clips({"train": GESTURES, "test": GESTURES}))
    assert data.num_classes == 3
    video, label = next(iter(data.test_dataloader()))
    assert video.shape == (2, 2, 1, 4, 8, 8)
    assert (video.dtype, label.tolist()) == (torch.float32, [0, 0])
    # The middle eight of twenty frames; 10.png comes after 9.png.
    assert greys(video[0]) == list(range(6, 14))


def test_a_short_video_repeats_its_last_frame(make_clips: MakeClips) -> None:
    data = prepared(make_clips({"train": GESTURES, "test": GESTURES}, frames=5))
    for split in (data.train_set(augment=True), data.test_set()):
        assert greys(split[0][0]) == [0, 1, 2, 3, 4, 4, 4, 4]


def test_training_starts_anywhere_and_stays_in_order(make_clips: MakeClips) -> None:
    data = prepared(make_clips({"train": GESTURES, "test": GESTURES}))
    drawn = [greys(data.train_set(augment=True)[0][0]) for _ in range(40)]
    assert all(frames == list(range(frames[0], frames[0] + 8)) for frames in drawn)
    assert {frames[0] for frames in drawn} >= {0, 12}
    assert greys(data.train_set(augment=False)[0][0]) == list(range(6, 14))


def test_all_frames_of_a_video_are_cropped_alike_and_none_is_mirrored(make_clips: MakeClips) -> None:
    root = make_clips({"train": GESTURES, "test": GESTURES})
    ramp = Image.linear_gradient("L").rotate(90).resize((40, 30))
    for file in root.rglob("*.png"):
        ramp.save(file)
    data = prepared(root).train_set(augment=True)
    drawn = [data[0][0].transpose(1, 2).flatten(0, 1) for _ in range(20)]
    assert all(torch.equal(video[0], frame) for video in drawn for frame in video)
    assert len({float(video[0].mean()) for video in drawn}) > 10
    assert len({bool(video[0, 0, 0, 0] < video[0, 0, 0, -1]) for video in drawn}) == 1


def test_colour_comes_in_three_channels(make_clips: MakeClips) -> None:
    data = prepared(make_clips({"train": GESTURES, "test": GESTURES}), channels=3)
    assert data.test_set()[0][0].shape == (2, 3, 4, 8, 8)
    with pytest.raises(ValueError, match=r"channels must be 1 \(depth, grey\) or 3 \(colour\), got 2"):
        ClipFolder("anywhere", channels=2)


def test_frames_of_either_format_and_nothing_else_are_read(make_clips: MakeClips) -> None:
    root = make_clips({"train": GESTURES, "test": GESTURES}, frames=8)
    folder = root / "test" / "push" / "video0"
    Image.new("L", (18, 16), 8).save(folder / "8.JPG")
    (folder / "times.txt").write_text("0 1 2")
    data = prepared(root, clips=1, frames=8)
    assert len(data.test_set().videos[0][0]) == 9
    assert len(data.test_set()) == 6


@pytest.mark.parametrize("splits", [(), ("train",), ("val", "test")], ids=["nothing", "no test", "no train"])
def test_a_missing_split_is_named_with_what_is_expected_where(make_clips: MakeClips, splits: tuple[str]) -> None:
    root = make_clips(dict.fromkeys(splits, GESTURES))
    missing = root / ("val" if "train" in splits else "train")
    with pytest.raises(FileNotFoundError, match=r"expects frames in .*/train/<class>/<video>/\*\.png") as caught:
        prepared(root)
    assert f"no folder {missing}" in str(caught.value)


def test_splits_with_other_classes_are_refused_by_the_classes_names(make_clips: MakeClips) -> None:
    root = make_clips({"train": GESTURES, "test": ("push", "swipe left", "wave")})
    with pytest.raises(ValueError, match="test and the training split differ in the classes swipe right, wave"):
        prepared(root)


def test_folders_without_a_frame_are_refused(make_clips: MakeClips) -> None:
    root = make_clips({"train": GESTURES, "test": GESTURES}, frames=0)
    with pytest.raises(FileNotFoundError, match=r"has no .*/<class>/<video>/ with frames \(\.png, \.jpg, \.jpeg\)"):
        prepared(root).train_dataloader()


def test_a_frame_of_sixteen_bits_is_refused_and_not_cut_off(make_clips: MakeClips) -> None:
    root = make_clips({"train": GESTURES, "test": GESTURES})
    frame = root / "test" / "push" / "video0" / "7.png"
    Image.new("I;16", (18, 16), 4000).save(frame)
    with pytest.raises(ValueError, match=r"7\.png has pixels of more than 8 bits \(mode I;16\): scale them"):
        prepared(root).test_set()[0]
