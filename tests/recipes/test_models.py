from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_taylor.recipes.models import create_model, find_head, model_names, replace_head

FAMILIES = (
    "digits_cnn alexnet convnext_tiny densenet121 efficientnet_b0 googlenet inception_v3 mnasnet0_5 mobilenet_v2 "
    "mobilenet_v3_small regnet_y_400mf resnet18 shufflenet_v2_x0_5 squeezenet1_1 swin_v2_t vgg11_bn vit_b_32 maxvit_t"
).split()
READ_TENSORS = {"regnet_y_400mf", "swin_v2_t", "maxvit_t"}
"""Networks that compute their widths or depths with tensors, which needs data."""


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_new_head_decides_how_many_classes_a_network_names(name: str) -> None:
    with torch.device("cpu" if name in READ_TENSORS else "meta"), torch.no_grad():
        model = create_model(name, num_classes=7)
        image = torch.zeros(2, 1 if name == "digits_cnn" else 3, 224, 224)
        replace_head(model, 5)
        for mode in (True, False):
            assert model.train(mode)(image).shape == (2, 5)


def test_every_classification_model_of_torchvision_has_a_name_here() -> None:
    assert set(FAMILIES) < set(model_names())
    assert not {"fcn_resnet50", "r3d_18", "raft_small"} & set(model_names())


def test_a_typo_in_a_name_is_answered_with_the_nearest_names() -> None:
    with pytest.raises(ValueError, match="no model is called 'resnet81'; the nearest names are resnet18"):
        create_model("resnet81", 10)


def test_a_name_like_no_other_is_answered_with_some_that_exist() -> None:
    with pytest.raises(ValueError, match="'!!!'; the nearest names are digits_cnn, resnet18"):
        create_model("!!!", 10)


def test_a_network_without_a_head_is_named() -> None:
    with pytest.raises(ValueError, match="Sequential has no head"):
        find_head(nn.Sequential(nn.Linear(3, 3)))


def test_a_new_head_keeps_the_type_and_the_missing_bias_of_the_old_one() -> None:
    model = nn.ModuleDict({"fc": nn.Linear(4, 3, bias=False, dtype=torch.float64)})
    replace_head(model, 2)
    head = find_head(model)[1]
    assert (head.weight.shape, head.weight.dtype, head.bias) == ((2, 4), torch.float64, None)
