"""Videos as folders of frames: one folder per split, in it one per class, in it one per video.

Shape legend: T = clips of a video, C = channels, F = frames (of a clip, or of the whole video), H, W = height and
width.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.folder import find_classes
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

from lightning_taylor.recipes.folder import SplitFolders

__all__ = ["ClipFolder", "Clips"]

SUFFIXES = (".png", ".jpg", ".jpeg")
MODES = {1: "L", 3: "RGB"}


class ClipFolder(SplitFolders):
    """Your own videos, as frames: ``<root>/train/<class>/<video>/*.png`` and the same in ``test`` (or ``val``).

    A video gives ``clips * frames`` frames in the order of their names: consecutive ones from a random start in
    training, those in the middle otherwise; one that is too short repeats its last frame. All frames of a video are
    cropped alike; none is mirrored, since that would turn a swipe to the left into one to the right.

    Args:
        root: the folder with the splits. If only one of ``val`` and ``test`` is there, it serves as both.
        clips: clips per video.
        frames: frames per clip.
        size: pixels per side that the network sees.
        channels: 1 for depth or grey, 3 for colour.
        batch_size: videos per batch.
        num_workers: processes that load each split.
        least_crop: smallest share of a training frame's area that is taken.

    Raises:
        FileNotFoundError: in ``setup``, if a split or its videos are missing; the message says what is expected where.
        ValueError: for a number of channels that is neither; in ``setup``, if the splits do not have the same classes.
    """

    def __init__(
        self,
        root: str,
        clips: int = 10,
        frames: int = 8,
        size: int = 112,
        channels: int = 1,
        batch_size: int = 8,
        num_workers: int = 2,
        least_crop: float = 0.5,
    ) -> None:
        here = Path(root)
        super().__init__(
            root,
            f"ClipFolder expects frames in {here}/train/<class>/<video>/*.png and "
            f"{here}/test/<class>/<video>/*.png (or val; or .jpg)",
            batch_size,
            num_workers,
        )
        if channels not in MODES:
            raise ValueError(f"channels must be 1 (depth, grey) or 3 (colour), got {channels!r}")
        self.clips = clips
        self.frames = frames
        self.size = size
        self.channels = channels
        self.least_crop = least_crop

    def read(self, split: Path, augment: bool) -> Clips:
        """The clips of one split's folder."""
        crop = (
            [v2.RandomResizedCrop(self.size, scale=(self.least_crop, 1.0), antialias=True)]
            if augment
            else [v2.Resize(round(self.size / 0.875), antialias=True), v2.CenterCrop(self.size)]
        )
        # One tensor holds all frames, so what is drawn for one is drawn for all.
        centred = [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * self.channels, [0.5] * self.channels)]
        shape = (self.clips, self.frames)
        return Clips(split, shape, v2.Compose([*crop, *centred]), MODES[self.channels], augment)


class Clips(Dataset):
    """Every video under one folder as a tensor ``(T, C, F, H, W)`` with the number of its class.

    Args:
        folder: ``<folder>/<class>/<video>/<frame>``.
        shape: clips, and frames of a clip.
        transform: from all frames, uint8 ``(F, C, H, W)``, to what the network sees.
        mode: how PIL is to read a frame: ``"L"`` or ``"RGB"``.
        random: whether the first frame is drawn; otherwise the middle of the video is taken.

    Raises:
        FileNotFoundError: if there is no video with a frame in it.
        ValueError: on reading a frame of more than 8 bits.
    """

    def __init__(
        self, folder: Path, shape: tuple[int, int], transform: Callable[[Tensor], Tensor], mode: str, random: bool
    ) -> None:
        videos = (
            (video, label)
            for label, name in enumerate(find_classes(folder)[0])
            for video in sorted((folder / name).iterdir())
        )
        self.videos = [(frames, label) for video, label in videos if (frames := _frames(video))]
        if not self.videos:
            raise FileNotFoundError(f"{folder} has no {folder}/<class>/<video>/ with frames ({', '.join(SUFFIXES)})")
        self.shape = shape
        self.transform = transform
        self.mode = mode
        self.random = random

    def __len__(self) -> int:
        """How many videos."""
        return len(self.videos)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One video and its class."""
        frames, label = self.videos[index]
        wanted = self.shape[0] * self.shape[1]
        spare = max(0, len(frames) - wanted)
        start = int(torch.randint(spare + 1, ())) if self.random else spare // 2
        taken = [frames[min(start + i, len(frames) - 1)] for i in range(wanted)]
        video_FCHW = self.transform(torch.stack([self._read(frame) for frame in taken]))
        return video_FCHW.unflatten(0, self.shape).transpose(1, 2), label

    def _read(self, frame: Path) -> Tensor:
        with Image.open(frame) as image:
            if image.mode.startswith(("I", "F")):  # PIL would cut them off at 255
                raise ValueError(f"{frame} has pixels of more than 8 bits (mode {image.mode}): scale them to 0 to 255")
            return pil_to_tensor(image.convert(self.mode))


def _frames(video: Path) -> list[Path]:
    """The frames of a video in order: ``2.png`` comes before ``10.png``."""
    found = [path for path in video.glob("*") if path.suffix.lower() in SUFFIXES]
    return sorted(found, key=lambda path: (len(path.stem), path.stem))
