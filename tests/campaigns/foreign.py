"""Does it prune a network that nobody here has seen? Models of other people's libraries, built from their configs.

``uv run --with timm --with segmentation-models-pytorch --with ultralytics --with torchaudio --with transformers
python tests/campaigns/foreign.py [--models 'timm/*' ...] [--out FILE] [--timeout S] [--table [--write FILE]]``

Nothing is downloaded: all weights are random. The environment of the project stays as it is.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch import nn

from campaigns.measuring import Example
from campaigns.table import Zoo, main

PACKAGES = ("torch", "timm", "segmentation-models-pytorch", "ultralytics", "torchaudio", "transformers")

TIMM = """
    beit_base_patch16_224 botnet26t_256 cait_xxs24_224 coat_lite_tiny coatnet_pico_rw_224 convit_tiny convmixer_768_32
    convnextv2_atto crossvit_tiny_240 cs3darknet_s cspresnet50 deit_tiny_distilled_patch16_224 densenetblur121d dla46x_c
    dpn48b edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientvit_b0 efficientvit_m0
    ese_vovnet19b_slim_dw eva02_tiny_patch14_224 fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny ghostnetv2_100
    gmlp_ti16_224 hardcorenas_a hgnetv2_b0 hrnet_w18_small inception_next_atto inception_v4 lcnet_050 legacy_seresnet18
    levit_128s mambaout_femto mixnet_s mobilenetv4_conv_small_035 mobileone_s1 mobilevit_xxs mobilevitv2_050
    nf_regnet_b0 pit_ti_224 poolformerv2_s12 pvt_v2_b0 rdnet_tiny regnety_002 repghostnet_050 repvgg_a0 repvit_m0_9
    res2net50_14w_8s resnest14d resnet10t resnetv2_50 rexnet_100 selecsls42 sequencer2d_s shvit_s1 skresnet18 starnet_s1
    swiftformer_xs swin_tiny_patch4_window7_224 test_maxvit tf_efficientnet_lite0 tiny_vit_5m_224 tresnet_m
    twins_svt_small vit_tiny_patch16_224 xception41 xcit_nano_12_p16_224
""".split()

SEGMENTATION = """
    Unet/resnet18 UnetPlusPlus/mobilenet_v2 MAnet/resnet18 Linknet/vgg11_bn FPN/timm-mobilenetv3_small_minimal_100
    PSPNet/resnet18 PAN/resnet18 DeepLabV3Plus/efficientnet-b0 UPerNet/densenet121 Segformer/mit_b0
""".split()

ULTRALYTICS = ["yolov5n", "yolov8n", "yolov8n-seg", "yolo11n"]

TORCHAUDIO = "conv_tasnet deepspeech wav2letter wavernn wav2vec2 hdemucs conformer".split()

TRANSFORMERS = {
    "resnet": {"embedding_size": 16, "hidden_sizes": [16, 32, 48], "depths": [2, 2, 2], "layer_type": "basic"},
    "regnet": {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 2], "groups_width": 8},
    "convnext": {"hidden_sizes": [16, 32], "depths": [2, 2], "num_stages": 2},
    "vit": {
        "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64,
        "image_size": 64, "patch_size": 16,
    },
}  # fmt: skip


def timm_model(name: str) -> Example:
    """The smallest image that goes through, if the size is free."""
    import timm

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = timm.create_model(name, pretrained=False)
    cfg = timm.get_pretrained_cfg(name)
    own = cfg.input_size[-1] if cfg else 224
    sides = (own,) if cfg is None or cfg.fixed_input_size else (64, 96, 128, own)
    return model, (torch.randn(1, 3, *2 * (fitting(model, sides),)),)


def fitting(model: nn.Module, sides: tuple[int, ...]) -> int:
    """The first side of an image that the model takes."""
    model.eval()
    for side in sides[:-1]:
        try:
            with torch.no_grad():
                model(torch.randn(1, 3, side, side))
        except Exception:  # A size that does not fit raises whatever the model's code happens to raise.
            continue
        return side
    return sides[-1]


def segmenter(name: str) -> Example:
    """A decoder on an encoder."""
    import segmentation_models_pytorch as smp

    decoder, encoder = name.split("/")
    side = 128 if decoder == "PAN" else 64
    return getattr(smp, decoder)(encoder, encoder_weights=None, classes=4), (torch.randn(1, 3, side, side),)


def yolo(name: str) -> Example:
    """A detector from its YAML; in training it gives the raw maps of its heads."""
    os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.gettempdir())
    os.environ.setdefault("YOLO_OFFLINE", "true")
    from ultralytics.nn.tasks import DetectionModel, SegmentationModel

    kind = SegmentationModel if name.endswith("-seg") else DetectionModel
    return kind(f"{name}.yaml", verbose=False), (torch.randn(1, 3, 64, 64),)


def any_cuda() -> AbstractContextManager[object]:
    """Torchaudio's compiled extension, which no net here uses, refuses a torch built for another CUDA version."""
    return mock.patch.object(torch.version, "cuda", None)


def audio(name: str) -> Example:
    """Torchaudio's nets, as small as their arguments allow."""
    with any_cuda():
        from torchaudio import models
    if name == "conv_tasnet":
        net = models.ConvTasNet(2, 8, 32, 3, 16, 32, msk_num_layers=3, msk_num_stacks=2)
        return net, (torch.randn(1, 1, 512),)
    if name == "deepspeech":
        return models.DeepSpeech(16, 32, 10), (torch.randn(1, 1, 20, 16),)
    if name == "wav2letter":
        return models.Wav2Letter(10, "mfcc", 13), (torch.randn(1, 13, 64),)
    if name == "wavernn":
        net = models.WaveRNN([2, 2, 2], 16, 8, 2, 16, 16, 5, 8, 8, 16)
        return net, (torch.randn(1, 1, (12 - 4) * 8), torch.randn(1, 1, 8, 12))
    if name == "hdemucs":
        net = models.HDemucs(["drums", "rest"], audio_channels=1, channels=8, nfft=1024, depth=5)
        return net, (torch.randn(1, 1, 8192),)
    if name == "conformer":
        return models.Conformer(16, 4, 32, 2, 5), (torch.randn(1, 20, 16), torch.tensor([20]))
    return wav2vec2(models), (torch.randn(1, 2000),)


def wav2vec2(models: object) -> nn.Module:
    """The base model's structure, smaller."""
    return models.wav2vec2_model(  # type: ignore[attr-defined]
        extractor_mode="group_norm", extractor_conv_layer_config=[(32, 10, 5), (32, 3, 2), (32, 2, 2)],
        extractor_conv_bias=False, encoder_embed_dim=32, encoder_projection_dropout=0.1, encoder_pos_conv_kernel=8,
        encoder_pos_conv_groups=4, encoder_num_layers=2, encoder_num_heads=4, encoder_attention_dropout=0.1,
        encoder_ff_interm_features=64, encoder_ff_interm_dropout=0.0, encoder_dropout=0.1,
        encoder_layer_norm_first=False, encoder_layer_drop=0.0, aux_num_out=10,
    )  # fmt: skip


def hugging_face(name: str) -> Example:
    """Vision models of transformers from a small config."""
    with any_cuda():  # transformers imports torchaudio where there is one
        import transformers as t

        kinds = {
            "resnet": (t.ResNetConfig, t.ResNetForImageClassification),
            "regnet": (t.RegNetConfig, t.RegNetForImageClassification),
            "convnext": (t.ConvNextConfig, t.ConvNextForImageClassification),
            "vit": (t.ViTConfig, t.ViTForImageClassification),
        }
    config, model = kinds[name]
    return model(config(**TRANSFORMERS[name])), (torch.randn(1, 3, 64, 64),)


def zoo() -> Zoo:
    """Library and model -> how to build it."""
    kinds = {
        "timm": (timm_model, TIMM),
        "smp": (segmenter, SEGMENTATION),
        "ultralytics": (yolo, ULTRALYTICS),
        "torchaudio": (audio, TORCHAUDIO),
        "transformers": (hugging_face, TRANSFORMERS),
    }
    return {f"{kind}/{name}": partial(make, name) for kind, (make, names) in kinds.items() for name in names}


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(__doc__, zoo(), "Other people's libraries", "foreign.jsonl", PACKAGES)
