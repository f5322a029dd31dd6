"""What the user sees: tables, files, and what goes to the progress bar and the loggers."""

from lightning_taylor.measure.latency import Latency, LatencyComparison, compare_latency, measure_latency
from lightning_taylor.report.summary import Change, LayerChange, PruningSummary
from lightning_taylor.report.summary_table import render, summary_tables

__all__ = [
    "Change",
    "Latency",
    "LatencyComparison",
    "LayerChange",
    "PruningSummary",
    "compare_latency",
    "measure_latency",
    "render",
    "summary_tables",
]
