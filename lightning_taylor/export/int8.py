"""Whole numbers of 8 bits in an ONNX file, by ONNX Runtime's static quantisation."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_taylor.errors import ExportError
from lightning_taylor.utilities.calls import Inputs

if TYPE_CHECKING:
    from onnxruntime.quantization import CalibrationDataReader

__all__ = ["fitted", "quantise", "ranges_and_comparison"]


def ranges_and_comparison(batches: Sequence[Inputs]) -> tuple[Sequence[Inputs], Sequence[Inputs]]:
    """Split batches: every other one sets ranges, the rest is for the comparison; one alone does both.

    Example:
        >>> import torch
        >>> [[each.args[0].item() for each in part] for part in ranges_and_comparison([Inputs.of(torch.tensor(i))
        ...     for i in range(5)])]
        [[0, 2, 4], [1, 3]]
    """
    return batches[::2], batches[1::2] or batches


def fitted(batches: Sequence[Inputs], size: int) -> list[Inputs]:
    """Cut batches for a file that takes exactly ``size`` examples; what is left over is dropped, if anything is not."""
    pieces = [piece for batch in batches for piece in batch.split(size) if piece.batch == size]
    return pieces or [batches[0].with_batch(size)]


def quantise(source: Path, target: Path, batches: Sequence[Inputs]) -> None:
    """Write an ONNX file with the operators of another in 8 bits.

    Weights are whole numbers from -64 to 64 times a factor for each channel, activations from 0 to 255 times one for
    each tensor, which spans its smallest and its largest number in all of the batches. The weights have 7 bits and
    not 8 since processors of AVX2 add products of two such numbers in 16 bits, which 8 bits overflow: the file
    would compute something else there. The file has quantise and dequantise operators around float ones (QDQ), which
    runtimes merge.

    Args:
        source: a file of floats.
        target: what is written; a file beside it, of the same name with ``.prepared``, too.
        batches: what the ranges are taken from.

    Raises:
        ExportError: if there is no operator in it that ONNX Runtime quantises.
    """
    with _unheard():
        # The package is large, and says what it thinks on the root logger.
        import onnx
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        prepared = target.with_name(f"{target.name}.prepared")
        # Normalisations become part of the weights here.
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        names = [given.name for given in onnx.load(str(source)).graph.input]
        quantize_static(
            str(prepared),
            str(target),
            _reader(names, batches),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )
        operators = {node.op_type for node in onnx.load(str(target)).graph.node}
    if "DequantizeLinear" not in operators:
        raise ExportError(f"ONNX Runtime quantises none of its operators ({', '.join(sorted(operators))})")


def _reader(names: Sequence[str], batches: Sequence[Inputs]) -> CalibrationDataReader:
    """Hand out the arrays of each batch, by the names of the file's inputs, as ONNX Runtime asks for them."""
    from onnxruntime.quantization import CalibrationDataReader

    left = iter(batches)

    class Reader(CalibrationDataReader):
        def get_next(self) -> Any:
            batch = next(left, None)
            arrays = batch and [tensor.detach().cpu().numpy() for tensor in batch.tensors]
            return arrays and dict(zip(names, arrays, strict=True))

    return Reader()


@contextmanager
def _unheard() -> Iterator[None]:
    """Without what is printed, or logged on the root logger, which is also kept from being set up for that."""
    root, handler = logging.getLogger(), logging.NullHandler()

    def refuse(record: logging.LogRecord) -> bool:
        return False

    root.addHandler(handler)  # logging.warning adds one for good where there is none
    root.addFilter(refuse)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        root.removeFilter(refuse)
        root.removeHandler(handler)
