"""What goes when: costs, targets, schedules, the selection, and the record of events."""

from lightning_taylor.plan.cost import Cost, CostModel
from lightning_taylor.plan.feasibility import check_reachable, reachable_minimum
from lightning_taylor.plan.measured_search import Selection, select_measured
from lightning_taylor.plan.record import Event, Record, fingerprint
from lightning_taylor.plan.schedule import Demand, Gradual, Iterative, OneShot, Schedule, default_schedule
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
    "OneShot",
    "Record",
    "Schedule",
    "Selection",
    "Target",
    "check_reachable",
    "default_schedule",
    "fingerprint",
    "reachable_minimum",
    "select",
    "select_measured",
]
