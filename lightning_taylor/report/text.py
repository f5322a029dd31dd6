"""Asked and achieved, in numbers as people read them: what the table in the terminal and the page have in common."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lightning_taylor.report.summary import Change, PruningSummary

__all__ = [
    "Total",
    "baseline_line",
    "latency_line",
    "oracle_line",
    "shortly",
    "size",
    "totals",
    "verdict",
]


@dataclass(frozen=True)
class Total:
    """One row: a quantity of the dense and of the pruned network, and what was asked of it; "" if there is nothing."""

    label: str
    dense: str
    pruned: str
    remains: str = ""
    asked: str = ""


def totals(summary: PruningSummary) -> list[Total]:
    """A row for everything that is known of the network as a whole, and for every resource that was asked for.

    Args:
        summary: what to tell.
    """
    return [*_counts(summary), *_weights(summary), *_times(summary), *_metrics(summary)]


def verdict(summary: PruningSummary) -> str:
    """Whether the target was met, in one line.

    Example:
        >>> half = Change(64, 32)
        >>> verdict(PruningSummary({"flops": 0.5}, half, half, half, layers=()))
        'Target met after 0 events: asked for flops 50.0% (got 50.0%).'
    """
    count = len(summary.events)
    events = "1 event" if count == 1 else f"{count} events"
    if not summary.asked:
        return f"{events}; no target was set."
    got = {name: f"got {fraction:.1%}" for name, fraction in summary.achieved.items()}
    pairs = ", ".join(f"{name} {f:.1%} ({got.get(name, 'not measured')})" for name, f in summary.asked.items())
    outcome = "Target met" if summary.met else "TARGET NOT MET"
    return f"{outcome} after {events}: asked for {pairs}."


def latency_line(summary: PruningSummary) -> str:
    """How the latency changed, with the batch size that it was measured at; "" if it was not."""
    if not summary.latency:
        return ""
    batch = summary.environment.get("batch_size")
    return f"Latency{f' at batch size {batch}' if batch else ''}: {summary.latency.verdict}."


def baseline_line(summary: PruningSummary) -> str:
    """Where the dense network's metrics come from, and whether the pruned one's are of its last size; "" without any.

    Example:
        >>> change, rows = Change(8, 4), ({"step": 5, "flops": 8}, {"step": 9, "flops": 4})
        >>> baseline_line(PruningSummary({}, change, change, change, (), events=({"step": 7},), curve=rows))
        'Metrics when dense: of the validation at step 5, before the first event at step 7.'
    """
    if not summary.curve or not summary.events:
        return ""
    first, last, given = summary.events[0]["step"], summary.curve[-1], ", ".join(summary.given)
    if summary.baseline_step is not None:
        said = f"of the validation at step {summary.baseline_step}, before the first event at step {first}"
        said += f"; {given} as given" if given else ""
    elif given:
        said = f"{given} as given"
    else:
        said = f"unknown, since no validation came before the first event at step {first}; baseline= gives them"
    stale = f" The last validation, at step {last['step']}, came before the last event."
    return f"Metrics when dense: {said}.{stale if last['flops'] != summary.flops.after else ''}"


def oracle_line(summary: PruningSummary) -> str:
    """How well the scores predicted the loss, over the events at which that was checked; "" if it was at none.

    Example:
        >>> from lightning_taylor.report.summary import Change, PruningSummary
        >>> checks = ({"step": 5, "correlation": 0.5}, {"step": 9, "correlation": 0.8})
        >>> oracle_line(PruningSummary({}, Change(1, 1), Change(1, 1), Change(1, 1), (), oracle=checks))
        'Scores against the oracle: mean rank correlation 0.65 over 2 events (0.50 to 0.80).'
    """
    if not summary.oracle:
        return ""
    found = [row["correlation"] for row in summary.oracle]
    spread = f"({min(found):.2f} to {max(found):.2f})"
    events = f"{len(found)} event{'s' * (len(found) > 1)}"
    return f"Scores against the oracle: mean rank correlation {sum(found) / len(found):.2f} over {events} {spread}."


def shortly(value: float) -> str:
    """A number with four digits and a unit, from a million on.

    Example:
        >>> shortly(999_999), shortly(1_820_000_000)
        ('999,999', '1.82 G')
    """
    for factor, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M")):
        if abs(value) >= factor:
            return f"{value / factor:.4g}{unit}"
    return f"{value:,.0f}"


def size(count: float) -> str:
    """Bytes in the decimal units that disks and downloads are counted in.

    Example:
        >>> size(512), size(44_700_000)
        ('512 B', '44.7 MB')
    """
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= factor:
            return f"{count / factor:.4g} {unit}"
    return f"{count:.0f} B"


def _counts(summary: PruningSummary) -> Iterator[Total]:
    for name, label in (("flops", "FLOPs"), ("params", "parameters"), ("channels", "removable channels")):
        change: Change = getattr(summary, name)
        remains = f"{change.remaining:.1%}"
        yield Total(label, shortly(change.before), shortly(change.after), remains, _asked(summary, name))


def _weights(summary: PruningSummary) -> Iterator[Total]:
    file, peak = (summary.environment.get(name) for name in ("state_dict_bytes", "peak_bytes"))
    if file:
        remains = f"{Change(file['dense'], file['pruned']).remaining:.1%}"
        yield Total("file size", size(file["dense"]), size(file["pruned"]), remains)
    # A memory target is judged by what the last event measured, so that is what stands beside it.
    if "memory" in summary.measured or "memory" in summary.asked:
        sizes = (size(peak["dense"]), size(peak["pruned"])) if peak else ("", "")
        yield Total("peak memory", *sizes, _measured(summary, "memory"), _asked(summary, "memory"))
    elif peak:
        remains = f"{Change(peak['dense'], peak['pruned']).remaining:.1%}"
        yield Total("peak memory", size(peak["dense"]), size(peak["pruned"]), remains)


def _times(summary: PruningSummary) -> Iterator[Total]:
    if summary.latency:
        before, after = summary.latency.dense.median, summary.latency.pruned.median
        remains = f"{Change(before, after).remaining:.1%}" if summary.latency.conclusive else "unclear"
        times = f"{before * 1e3:.3g} ms", f"{after * 1e3:.3g} ms"
        yield Total("latency", *times, remains, _asked(summary, "latency"))
    elif "latency" in summary.measured or "latency" in summary.asked:
        yield Total("latency", "", "", _measured(summary, "latency"), _asked(summary, "latency"))


def _metrics(summary: PruningSummary) -> Iterator[Total]:
    for name, change in summary.metrics.items():
        yield Total(name, f"{change.before:.4g}", f"{change.after:.4g}")
    last = summary.curve[-1] if summary.curve and summary.events else {}
    for name, value in last.items():
        if name not in ("step", "flops", *summary.metrics):
            yield Total(name, "unknown", f"{value:.4g}")


def _asked(summary: PruningSummary, resource: str) -> str:
    return f"{summary.asked[resource]:.1%}" if resource in summary.asked else ""


def _measured(summary: PruningSummary, resource: str) -> str:
    return f"{summary.measured[resource]:.1%}" if resource in summary.measured else "unknown"
