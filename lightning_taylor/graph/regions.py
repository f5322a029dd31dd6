"""Rules for what detection heads do: maps pooled over regions, rows written into a table of results.

Which regions there are is decided by values, which a trace does not follow; their channels are those of the maps.
"""

from __future__ import annotations

from lightning_taylor.graph.labels import Labels, collapse, is_constant
from lightning_taylor.graph.pointwise import combine, freeze_all
from lightning_taylor.graph.tracer import Call

__all__ = ["pool", "put"]


def pool(call: Call) -> Labels | None:
    """Region pooling: ``(N, C, H, W)`` and regions to ``(K, C, h, w)``."""
    maps, regions = (call.tracer.labels_of(tensor) for tensor in call.operands[:2])
    call.tracer.freeze(regions, f"coordinates of regions ({call.where})")
    if maps is None:
        return None
    if maps.weight or not is_constant(maps.slots[0], (0, 2, 3)):
        return freeze_all(call, f"channels lie along the positions that {call.where} works over")
    return Labels((collapse(maps.slots[0], (0, 2, 3), keepdim=True).expand(call.out.shape),))


def put(call: Call) -> Labels | None:
    """``table[rows] = values``: every row of a table is as wide as what is written into any of them."""
    table, values, rows = call.get("self"), call.get("values"), call.get("indices")
    carried = [x for x in (call.tracer.labels_of(table), call.tracer.labels_of(values)) if x is not None]
    # Values may lack leading dimensions, by broadcasting.
    slots = [x.slots[0][(None,) * (table.ndim - x.slots[0].ndim)] for x in carried]
    # One index tensor without None before it counts rows; a mask or several of them index other dimensions too.
    plain = len(rows) == 1 and rows[0] is not None and rows[0].ndim == 1 and not call.tracer.labels_of(rows[0])
    if not plain or any(x.weight for x in carried) or not all(is_constant(slot, (0,)) for slot in slots):
        return freeze_all(call, f"written by an index ({call.where})")
    wide = [collapse(slot, (0,), keepdim=True).expand(table.shape) for slot in slots if len(slot)]
    return Labels((wide[0] if len(wide) == 1 else combine(call, wide[0], wide[1], table.shape),)) if wide else None
