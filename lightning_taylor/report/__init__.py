"""What the user sees: tables, files, and what goes to the progress bar and the loggers."""

from lightning_taylor.report.event import PruningEvent
from lightning_taylor.report.inspection import Inspection, inspect_model
from lightning_taylor.report.inspection_table import inspection_tables
from lightning_taylor.report.summary import Change, LayerChange, PruningSummary
from lightning_taylor.report.summary_table import render, summary_tables

__all__ = [
    "Change",
    "Inspection",
    "LayerChange",
    "PruningEvent",
    "PruningSummary",
    "inspect_model",
    "inspection_tables",
    "render",
    "summary_tables",
]
