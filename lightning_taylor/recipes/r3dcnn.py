"""R3DCNN: 3-D convolutions on each short clip of a video, then a recurrent layer over the clips.

Shape legend: N = videos, T = clips of a video, C = channels, F = frames of a clip, H, W = height and width,
K = classes, D = features of a clip.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool3d

__all__ = ["R3DCNN", "load_c3d"]

WIDTHS = {"conv1": 1, "conv2": 2, "conv3a": 4, "conv3b": 4, "conv4a": 8, "conv4b": 8, "conv5a": 8, "conv5b": 8}
"""The convolutions by C3D's names, and how many times as many channels each has as the first."""
POOLINGS = {"conv1": (1, 2, 2), "conv2": (2, 2, 2), "conv3b": (2, 2, 2), "conv4b": (2, 2, 2)}
"""After which of them how many frames, rows and columns become one."""


class R3DCNN(nn.Module):
    r"""C3D on clips of a few frames, a simple recurrent layer over the clips, and logits for every clip.

    .. math::  h_t = \mathrm{ReLU}(W_{in} f_t + W_h h_{t-1} + b), \qquad y_t = W h_t + c

    with the features ``f`` of clip ``t`` from eight 3 x 3 x 3 convolutions, five poolings and one linear layer. With
    one input channel and clips of 8 frames of 112 x 112 pixels the convolutions take 37.8 GFLOPs a clip, as in the
    paper.

    Args:
        num_classes: how many logits a clip gets.
        in_channels: 1 for depth, which the paper's costs are of; 3 for colour.
        width: output channels of the first convolution; the last has eight times as many.
        features: width of the linear layer.
        hidden: width of the recurrent layer.
        frames: frames of a clip, a multiple of 8.
        size: pixels per side, a multiple of 16.
        dropout: share of the linear layer's outputs that is silenced in training.

    Raises:
        ValueError: if so many frames or pixels cannot be halved so often.

    Source: Molchanov et al., CVPR 2016 (R3DCNN); Tran et al., arXiv 1412.0767 (C3D).

    Example:
        >>> net = R3DCNN(num_classes=25, width=4, features=16, hidden=8, size=32)
        >>> net(torch.zeros(2, 3, 1, 8, 32, 32)).shape
        torch.Size([2, 3, 25])
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 1,
        width: int = 64,
        features: int = 4096,
        hidden: int = 256,
        frames: int = 8,
        size: int = 112,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        for name, value, multiple in (("frames", frames, 8), ("size", size, 16)):
            if value < multiple or value % multiple:
                raise ValueError(f"{name} must be a multiple of {multiple}, which the poolings make 1 of, got {value}")
        self.clip_shape = (in_channels, frames, size, size)
        channels = in_channels
        for name, times in WIDTHS.items():
            self.add_module(name, nn.Conv3d(channels, times * width, kernel_size=3, padding=1))
            channels = times * width
        # The border is C3D's: 7 x 7 become 4 x 4, so that the linear layer fits its published weights.
        self.pool5 = nn.MaxPool3d((1, 2, 2), padding=(0, 1, 1))
        side = size // 16 // 2 + 1
        self.fc6 = nn.Linear(channels * (frames // 8) * side * side, features)
        # With torch's own start nothing of the video is left after nine layers without normalisation.
        for layer in self.modules():
            if isinstance(layer, nn.Conv3d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        self.dropout = nn.Dropout(dropout)
        # A cell, not nn.RNN: cuDNN's fused kernel is one operator, into which no channel can be followed.
        self.recurrent = nn.RNNCell(features, hidden, nonlinearity="relu")
        self.head = nn.Linear(hidden, num_classes)

    def forward(self, video_NTCFHW: Tensor) -> Tensor:
        """Logits of shape ``(N, T, K)``; those of a clip depend on the clips up to it.

        Raises:
            ValueError: for clips of another shape than the net was made for.
        """
        if video_NTCFHW.ndim != 6 or tuple(video_NTCFHW.shape[2:]) != self.clip_shape:
            wanted = ", ".join(map(str, self.clip_shape))
            raise ValueError(f"R3DCNN wants videos of shape (N, T, {wanted}), got {tuple(video_NTCFHW.shape)}")
        feature_NTD = self.encode(video_NTCFHW.flatten(0, 1)).unflatten(0, video_NTCFHW.shape[:2])
        state, states = None, []
        for feature_ND in feature_NTD.unbind(dim=1):
            state = self.recurrent(feature_ND, state)
            states.append(state)
        return self.head(torch.stack(states, dim=1))

    def encode(self, clip_NCFHW: Tensor) -> Tensor:
        """Features of single clips, of shape ``(N, D)``."""
        x = clip_NCFHW
        for name in WIDTHS:
            x = self.get_submodule(name)(x).relu()
            if name in POOLINGS:
                x = max_pool3d(x, POOLINGS[name])
        return self.dropout(self.fc6(self.pool5(x).flatten(1)).relu())


def load_c3d(model: R3DCNN, state: Mapping[str, Tensor]) -> None:
    """Copy C3D's weights for the convolutions and ``fc6``, in place; what C3D does not have stays as it is.

    A first convolution of colour is summed over its colours for a net of one channel: it answers to depth as it
    would to a grey image.

    Args:
        model: at C3D's own widths, frames and size, or whatever the weights are of.
        state: with ``conv1.weight``, ``conv1.bias`` and so on to ``fc6.bias``; others are left out.

    Raises:
        ValueError: naming the tensors that are missing or of another shape.
    """
    own = {name: value for name, value in model.state_dict().items() if name.startswith(("conv", "fc6"))}
    found = {name: state[name] for name in own if name in state}
    if model.clip_shape[0] == 1 and "conv1.weight" in found:
        found["conv1.weight"] = found["conv1.weight"].sum(dim=1, keepdim=True)
    wrong = [
        f"{name} {tuple(found[name].shape) if name in found else 'is missing'} where {tuple(value.shape)} is wanted"
        for name, value in own.items()
        if name not in found or found[name].shape != value.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"these weights are not those of a C3D of this size: {', '.join(wrong[:3])}{more}")
    model.load_state_dict(found, strict=False)
