"""The same as ``foreign.py`` for MONAI and diffusers: U-Nets, autoencoders and transformers from small arguments.

``uv run --with monai --with einops --with diffusers python tests/campaigns/foreign_unets.py [--models 'monai/*' ...]
[--out FILE] [--timeout S] [--table [--write FILE]]``
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from campaigns.measuring import Example
from campaigns.table import Zoo, main

_IMAGE = (torch.randn(1, 1, 64, 64),)
_NOISY = (torch.randn(1, 1, 32, 32), torch.tensor([3]))
_SEGMENTS: Mapping[str, Any] = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
_GENERATES: Mapping[str, Any] = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1}
_GROUPS: Mapping[str, Any] = {"channels": (16, 32), "norm_num_groups": 8}

MONAI: dict[str, tuple[str, tuple[torch.Tensor, ...], Mapping[str, Any]]] = {
    "BasicUNet": ("BasicUNet", _IMAGE, {**_SEGMENTS, "features": (8, 8, 16, 16, 32, 8)}),
    "BasicUNet-GN": (
        "BasicUNet", _IMAGE, {**_SEGMENTS, "features": (8, 8, 16, 16, 32, 8), "norm": ("group", {"num_groups": 4})}
    ),
    "SegResNet": ("SegResNet", _IMAGE, {**_SEGMENTS, "init_filters": 8}),
    "SegResNetVAE": ("SegResNetVAE", _IMAGE, {**_SEGMENTS, "input_image_size": (64, 64), "init_filters": 8}),
    "SegResNetDS": ("SegResNetDS", _IMAGE, {**_SEGMENTS, "init_filters": 8}),
    "AttentionUnet": ("AttentionUnet", _IMAGE, {**_SEGMENTS, "channels": (8, 16, 32), "strides": (2, 2)}),
    "UNETR": (
        "UNETR", _IMAGE,
        {**_SEGMENTS, "img_size": 64, "feature_size": 8, "hidden_size": 48, "mlp_dim": 64, "num_heads": 4},
    ),
    "SwinUNETR": ("SwinUNETR", _IMAGE, {**_SEGMENTS, "feature_size": 12}),
    "VNet": ("VNet", _IMAGE, _SEGMENTS),
    "HighResNet": ("HighResNet", _IMAGE, _SEGMENTS),
    "AutoEncoder": ("AutoEncoder", _IMAGE, {**_SEGMENTS, "channels": (8, 16, 16), "strides": (2, 2, 2)}),
    "VarAutoEncoder": (
        "VarAutoEncoder", (torch.randn(1, 1, 48, 48),),
        {"spatial_dims": 2, "in_shape": (1, 48, 48), "out_channels": 1, "latent_size": 8, "channels": (8, 16),
         "strides": (2, 2)},
    ),
    "EfficientNetBN": (
        "EfficientNetBN", _IMAGE,
        {"model_name": "efficientnet-b0", "spatial_dims": 2, "in_channels": 1, "num_classes": 3, "pretrained": False},
    ),
    "FlexibleUNet": (
        "FlexibleUNet", _IMAGE,
        {"in_channels": 1, "out_channels": 2, "backbone": "resnet18", "spatial_dims": 2, "pretrained": False},
    ),
    "ViTAutoEnc": (
        "ViTAutoEnc", _IMAGE,
        {"in_channels": 1, "img_size": (64, 64), "patch_size": (16, 16), "hidden_size": 48, "mlp_dim": 64,
         "num_heads": 4, "num_layers": 2, "spatial_dims": 2},
    ),
    "DiffusionModelUNet": (
        "DiffusionModelUNet", _NOISY,
        {**_GENERATES, **_GROUPS, "attention_levels": (False, True), "num_res_blocks": 1, "num_head_channels": 8},
    ),
    "SPADEDiffusionModelUNet": (
        "SPADEDiffusionModelUNet", (*_NOISY, torch.randn(1, 3, 32, 32)),
        {**_GENERATES, **_GROUPS, "label_nc": 3, "attention_levels": (False, False), "num_res_blocks": 1,
         "spade_intermediate_channels": 8},
    ),
    "AutoencoderKL": (
        "AutoencoderKL", _IMAGE,
        {**_GENERATES, **_GROUPS, "latent_channels": 3, "num_res_blocks": (1, 1), "attention_levels": (False, True)},
    ),
    "VQVAE": (
        "VQVAE", _IMAGE,
        {**_GENERATES, "channels": (16, 32), "num_res_channels": (16, 32), "num_embeddings": 16, "embedding_dim": 8,
         "downsample_parameters": ((2, 4, 1, 1),) * 2, "upsample_parameters": ((2, 4, 1, 1, 0),) * 2},
    ),
    "Quicknat": ("Quicknat", _IMAGE, {"num_classes": 2, "num_channels": 1, "num_filters": 8}),
    "RegUNet": ("RegUNet", _IMAGE, {"spatial_dims": 2, "in_channels": 1, "num_channel_initial": 8, "depth": 2}),
    "MILModel": (
        "MILModel", (torch.randn(1, 3, 3, 32, 32),), {"num_classes": 2, "mil_mode": "att", "pretrained": False}
    ),
}  # fmt: skip

_UNET: Mapping[str, Any] = {
    "sample_size": 16, "in_channels": 3, "out_channels": 3, "layers_per_block": 1, "block_out_channels": (32, 64),
    "norm_num_groups": 8,
}  # fmt: skip
_STEP = (torch.randn(1, 3, 16, 16), torch.tensor([3]))

DIFFUSERS: dict[str, tuple[str, tuple[torch.Tensor, ...], Mapping[str, Any]]] = {
    "UNet2DModel": (
        "UNet2DModel", _STEP,
        {**_UNET, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
         "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 8},
    ),
    "UNet2DConditionModel": (
        "UNet2DConditionModel", (*_STEP, torch.randn(1, 5, 24)),
        {**_UNET, "cross_attention_dim": 24, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
         "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "attention_head_dim": 4},
    ),
    "AutoencoderKL": (
        "AutoencoderKL", (torch.randn(1, 3, 32, 32),),
        {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
         "block_out_channels": (16, 32), "norm_num_groups": 8, "sample_size": 32},
    ),
}  # fmt: skip


def built(library: str, kind: str, x: tuple[torch.Tensor, ...], arguments: Mapping[str, Any]) -> Example:
    """One net and its input."""
    if library == "monai":
        from monai.networks import nets as classes
    else:
        import diffusers as classes  # type: ignore[no-redef]
    return getattr(classes, kind)(**arguments), x


def zoo() -> Zoo:
    """Library and model -> how to build it."""
    libraries = {"monai": MONAI, "diffusers": DIFFUSERS}
    return {
        f"{library}/{name}": partial(built, library, *case)
        for library, nets in libraries.items()
        for name, case in nets.items()
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(__doc__, zoo(), "U-Nets of MONAI and diffusers", "foreign_unets.jsonl", ("torch", "monai", "diffusers"))
