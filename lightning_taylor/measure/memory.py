"""How many bytes one forward pass keeps alive at its peak, counted exactly and the same on every device."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "byte_curve",
    "peak_bytes",
]


def peak_bytes(run: Callable[[], Any], held: Iterable[Tensor]) -> int:
    """The most bytes of tensor storage that are alive at one time while a function runs without gradients.

    Every storage counts once, from the operation that makes it until its last tensor is gone; views cost nothing.
    The same code and shapes give the same number on every machine and device.

    What it does not see: workspaces and temporaries inside one operator (cuDNN, im2col), the allocator's rounding
    and fragmentation, the CUDA context, sparse tensors, and what a compiled or fused graph would save.

    Args:
        run: takes nothing, e.g. ``lambda: model(x)``; put the model into evaluation mode before.
        held: tensors that are alive all the time: parameters, buffers and inputs.

    Returns:
        Bytes.

    Example:
        >>> x = torch.zeros(256)  # 1024 bytes
        >>> peak_bytes(lambda: (x + 1).view(16, 16).relu().sum(), [x])  # at the ReLU: x, its input and its output
        3072
        >>> peak_bytes(lambda: x.view(16, 16), [x, x[:10]])
        1024
    """
    return max(byte_curve(run, held))


def byte_curve(run: Callable[[], Any], held: Iterable[Tensor]) -> list[int]:
    """The bytes of tensor storage that are alive before a function runs, and at the end of each operator of it.

    Args:
        run: as for ``peak_bytes``; on the device "meta" it costs nothing and gives the same numbers.
        held: as for ``peak_bytes``.

    Returns:
        Bytes, one number more than there are operators; their maximum is what ``peak_bytes`` returns.

    Example:
        >>> x = torch.zeros(256)
        >>> byte_curve(lambda: (x + 1).relu().sum(), [x])
        [1024, 2048, 3072, 2052]
    """
    counter = _Counter()
    for tensor in held:
        counter.see(tensor)
    counter.curve.append(counter.live)
    with torch.no_grad(), counter:
        run()
    return counter.curve


class _Counter(TorchDispatchMode):
    """Follows every storage that an operator returns by a weak reference.

    A storage's Python object lives as long as the storage itself, however many tensors come and go, so the
    reference's callback is the moment at which the memory is given back.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.curve: list[int] = []
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operator and count what it made while its arguments are still alive."""
        out = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.see(leaf)
        self.curve.append(self.live)
        return out

    def see(self, tensor: Tensor) -> None:
        """Count the tensor's storage, unless it is known."""
        if tensor.layout is not torch.strided:
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def gone(_: object) -> None:
            del self._known[key]
            self.live -= size

        self._known[key] = weakref.ref(storage, gone)
        self.live += size
