"""``save_pretrained`` and ``from_pretrained`` of Hugging Face for networks that were pruned.

A config of transformers has one number for all layers, and ``from_pretrained`` builds the network by it before it loads
the tensors. So the config of a pruned network tells the widths of every layer as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lightning_taylor.export.state_dict import check_own_code, layers_and_shapes

__all__ = ["PrunedPretrainedMixin"]

KEY = "lightning_taylor"
"""Of the entry in the config."""


class PrunedPretrainedMixin:
    """Makes a class of transformers write and read pruned networks; name it first among the bases.

    ``save_pretrained`` then notes the widths in ``config.json``, and ``from_pretrained`` builds by them. A folder whose
    config does not tell any is loaded as ever::

        class Net(PrunedPretrainedMixin, transformers.ViTForImageClassification):
            pass

        net = Net.from_pretrained("google/vit-base-patch16-224")
        ...  # a fit that prunes it
        net.save_pretrained("pruned")
        net = Net.from_pretrained("pruned")

    A network that was built without it gets it by ``net.__class__ = Net``.
    """

    config: Any

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        if widths := getattr(config, KEY, None):
            assert isinstance(self, nn.Module)
            _fit(self, widths)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """Save as transformers does, with the widths of all layers in the config.

        Raises:
            ExportError: if an attention lost heads and runs code of this package, which no config can tell.
        """
        assert isinstance(self, nn.Module)
        check_own_code(self)
        setattr(self.config, KEY, layers_and_shapes(self))
        return super().save_pretrained(*args, **kwargs)  # type: ignore[misc]


def _fit(model: nn.Module, widths: Mapping[str, Any]) -> None:
    """Give a dense network the attributes and shapes that a config tells; its values are loaded afterwards."""
    for layer, attributes in widths["layers"].items():
        own = vars(model.get_submodule(layer))
        own.update({name: _like(own.get(name), value) for name, value in attributes.items()})
    with torch.no_grad():
        for name, shape in widths["tensors"].items():
            layer, _, attribute = name.rpartition(".")
            tensor = getattr(model.get_submodule(layer), attribute)
            if list(tensor.shape) != list(shape):
                # On the device where transformers builds: often "meta", where nothing has values.
                tensor.data = tensor.new_zeros(shape)


def _like(dense: Any, value: Any) -> Any:
    """Make what JSON made of an attribute the same kind of list or tuple as in the dense network."""
    if isinstance(dense, dict) and isinstance(value, dict):
        return {key: _like(dense.get(key), part) for key, part in value.items()}
    if isinstance(dense, list | tuple) and isinstance(value, list | tuple):
        return type(dense)(_like(one, other) for one, other in zip(dense, value, strict=True))
    return value
