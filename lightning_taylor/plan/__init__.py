"""What goes when: costs, targets, schedules, the selection, and the record of events."""

from lightning_taylor.plan.cost import Cost, CostModel
from lightning_taylor.plan.fit_length import FitLength
from lightning_taylor.plan.guard import Guard
from lightning_taylor.plan.record import Event, Record
from lightning_taylor.plan.schedule import Demand, Gradual, Iterative, OneShot, Schedule
from lightning_taylor.plan.score_batches import ScoreBatches
from lightning_taylor.plan.select import select
from lightning_taylor.plan.target import Target

__all__ = [
    "Cost",
    "CostModel",
    "Demand",
    "Event",
    "FitLength",
    "Gradual",
    "Guard",
    "Iterative",
    "OneShot",
    "Record",
    "Schedule",
    "ScoreBatches",
    "Target",
    "select",
]
