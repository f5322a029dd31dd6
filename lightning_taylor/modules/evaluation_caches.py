"""What modules keep for evaluation: biases looked up in a table, merged weights; made of parameters that may be cut."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

__all__ = ["renew_caches"]


def renew_caches(model: nn.Module, names: Iterable[str]) -> None:
    """Let modules in evaluation mode drop what they made of tensors that have lost channels since.

    The place for that is their own ``train``, as in timm's LeViT and EfficientFormer: they drop it when training
    begins. So they are put there and back; modes are given back as they were, and other modules are left alone.

    Args:
        model: after the surgery.
        names: qualified names of the tensors that were cut; those that the model has not are left out.
    """
    modules = dict(model.named_modules())
    for name in dict.fromkeys(name.rpartition(".")[0] for name in names):
        module = modules.get(name)
        if module is None or module.training or type(module).train is nn.Module.train:
            continue
        modes = [(inner, inner.training) for inner in module.modules()]
        module.train(True)
        module.train(False)
        for inner, mode in modes:
            inner.training = mode
