"""What goes when: costs, targets, schedules, the selection, and the record of events."""

from lightning_taylor.plan.cost import Cost, CostModel
from lightning_taylor.plan.latency import Latency, LatencyComparison, compare_latency, measure_latency
from lightning_taylor.plan.measured import select_measured
from lightning_taylor.plan.memory import peak_bytes
from lightning_taylor.plan.meter import Measure, Meter
from lightning_taylor.plan.reach import check_reachable, reachable_minimum
from lightning_taylor.plan.record import Event, Record, fingerprint
from lightning_taylor.plan.schedule import Demand, Gradual, Iterative, OneShot, Schedule, default_schedule
from lightning_taylor.plan.search import Selection
from lightning_taylor.plan.select import select
from lightning_taylor.plan.target import Curve, Target

__all__ = [
    "Cost",
    "CostModel",
    "Curve",
    "Demand",
    "Event",
    "Gradual",
    "Iterative",
    "Latency",
    "LatencyComparison",
    "Measure",
    "Meter",
    "OneShot",
    "Record",
    "Schedule",
    "Selection",
    "Target",
    "check_reachable",
    "compare_latency",
    "default_schedule",
    "fingerprint",
    "measure_latency",
    "peak_bytes",
    "reachable_minimum",
    "select",
    "select_measured",
]
