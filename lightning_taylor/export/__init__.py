"""Files to ship: ONNX, ``torch.export`` and a state dict that torchvision alone can load, each compared before kept."""

from lightning_taylor.export.comparison import Rounding
from lightning_taylor.export.onnx import export_onnx, onnx_session
from lightning_taylor.export.pretrained import PrunedPretrainedMixin
from lightning_taylor.export.program import export_program
from lightning_taylor.export.state_dict import export_state_dict
from lightning_taylor.export.verified_write import Exported, ExportError

__all__ = [
    "ExportError",
    "Exported",
    "PrunedPretrainedMixin",
    "Rounding",
    "export_onnx",
    "export_program",
    "export_state_dict",
    "onnx_session",
]
