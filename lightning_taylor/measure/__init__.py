"""What a network takes on this machine: latency, peak memory, file size.

Each can stand on its own, without a Trainer.
"""

from lightning_taylor.measure.latency import Latency, LatencyComparison, compare_latency, measure_latency
from lightning_taylor.measure.memory import peak_bytes
from lightning_taylor.measure.meter import Measure, Meter

__all__ = [
    "Latency",
    "LatencyComparison",
    "Measure",
    "Meter",
    "compare_latency",
    "measure_latency",
    "peak_bytes",
]
