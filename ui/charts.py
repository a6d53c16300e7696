"""The charts of report and app. They draw what they are given and compute only positions.

Altair, because Streamlit brings it (Plotly would add 64 MB).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from hardware.units import format_count
from scheduler.evaluation.timeline import Span
from scheduler.ir.graph import Graph
from scheduler.report import MemoryUse
from simulator.capacity import Fleet
from simulator.whatif import Outcome

WIDTH = 780
COLUMNS = 44
"""Operators in one row of the graph before it goes on in the next."""

MAX_SPANS = 4000
NEAR = 4.0
"""A limit is drawn where it is at most so many times what is held."""
SPANS = (("seconds", 1.0), ("minutes", 60.0), ("hours", 3600.0))
WHOLE_LABELS = alt.Axis(labelLimit=300, labelOverlap=False)


@dataclass(frozen=True)
class TimeUnit:
    """What a time axis counts in."""

    name: str
    short: str
    seconds: float


MILLISECONDS = TimeUnit("milliseconds", "ms", 1e-3)
FILE_UNIT = TimeUnit("time, in the file's unit", "(file's unit)", 1.0)


Chart = Any
"""An Altair chart; the library is not typed enough to say which kind."""


def _data(rows: list[dict[str, Any]]) -> Any:
    return alt.InlineData(values=rows)


def graph_chart(graph: Graph, placement: Mapping[str, str]) -> Chart:
    """The graph, left to right in rows by depth, coloured by device."""
    position = _positions(graph)
    nodes = [
        {
            "x": position[op.name][0], "y": position[op.name][1], "operator": op.name,
            "kind": op.kind, "module": op.module, "device": placement[op.name],
            "work": format_count(op.flops, "FLOP"),
        }
        for op in graph.ops
    ]  # fmt: skip
    edges = []
    for op in graph.ops:
        for tensor in op.inputs:
            if (source := graph.producer.get(tensor)) is not None:
                (x, y), (x2, y2) = position[source], position[op.name]
                if x2 > x and abs(y2 - y) < 6:
                    edges.append({"x": x, "y": y, "x2": x2, "y2": y2})
    across = alt.X("x:Q", axis=None)
    down = alt.Y("y:Q", axis=None, scale=alt.Scale(reverse=True))
    lines = alt.Chart(_data(edges)).mark_rule(color="#bbb").encode(across, down, x2="x2", y2="y2")
    legend = _legend(placement.values())
    points = (
        alt.Chart(_data(nodes))
        .mark_point(size=90, opacity=1, filled=True)
        .encode(
            across, down, color=alt.Color("device:N", title="device", legend=legend),
            shape=alt.Shape("device:N", title="device", legend=legend),
            tooltip=["operator:N", "kind:N", "module:N", "device:N", "work:N"],
        )
    )  # fmt: skip
    height = 40 + 22 * (max(node["y"] for node in nodes) + 1)  # type: ignore[operator, type-var]
    return (lines + points).properties(width=WIDTH, height=height, title="Graph by device")


def _legend(names: Iterable[str]) -> Any:
    """Below the chart, names of many replicas one below the other."""
    is_long = max(map(len, names), default=0) > 20
    return alt.Legend(orient="bottom", labelLimit=WIDTH, columns=1 if is_long else 8, symbolLimit=0)


def _positions(graph: Graph) -> dict[str, tuple[int, int]]:
    """Column by depth, wrapped; lanes side by side where several operators have one depth."""
    depth: dict[str, int] = {}
    for op in graph.ops:
        sources = [graph.producer[t] for t in op.inputs if t in graph.producer]
        depth[op.name] = max((depth[s] + 1 for s in sources), default=0)
    lanes = Counter(depth.values())
    rows = max(depth.values()) // COLUMNS + 1
    tallest = [
        max((lanes[d] for d in range(r * COLUMNS, (r + 1) * COLUMNS) if d in lanes), default=1)
        for r in range(rows)
    ]
    seen: Counter[int] = Counter()
    position = {}
    for op in graph.ops:
        d = depth[op.name]
        row = d // COLUMNS
        position[op.name] = (d % COLUMNS, sum(tallest[:row]) + row + seen[d])
        seen[d] += 1
    return position


def timeline_chart(
    sides: Mapping[str, Sequence[Span]], title: str, unit: TimeUnit = MILLISECONDS
) -> Chart:
    """Gantt charts on one time axis, one above the other: prediction above measurement."""

    def before(side: str) -> str:
        return f"{side}: " if len(sides) > 1 else ""

    rows = [
        {
            "row": before(side) + span.resource,
            "start": span.start_s / unit.seconds, "end": span.end_s / unit.seconds,
            "name": span.name, "duration": f"{span.duration_s / unit.seconds:.4g} {unit.short}",
            "micro-batch": str(span.micro_batch),
        }
        for side, spans in sides.items()
        for span in list(spans)[:MAX_SPANS]
    ]  # fmt: skip
    names = [
        name
        for side, spans in sides.items()
        for name in sorted({before(side) + span.resource for span in spans})
    ]
    numbers = sorted({span.micro_batch for spans in sides.values() for span in spans})
    legend = alt.Legend(orient="bottom", columns=8) if len(numbers) > 1 else None
    return (
        alt.Chart(_data(rows))
        .mark_bar(stroke="white", strokeWidth=0.3)
        .encode(
            x=alt.X("start:Q", title=unit.name), x2="end:Q",
            y=alt.Y("row:N", title=None, sort=names, axis=WHOLE_LABELS),
            color=alt.Color(
                "micro-batch:N",
                sort=[str(number) for number in numbers],
                scale=alt.Scale(scheme="tableau10"),
                legend=legend,
            ),
            tooltip=["name:N", "row:N", "duration:N", "micro-batch:N"],
        )
        .properties(width=WIDTH - 60, height=28 * len(names), title=title)
    )  # fmt: skip


def memory_chart(memory: Mapping[str, MemoryUse], unit: TimeUnit = MILLISECONDS) -> Chart:
    """Memory of every device over the time of a replay; limits (dashed) near enough to be seen."""
    rows = [
        {
            "device": device, "time": time_s / unit.seconds,
            "GiB": (use.constant_bytes + num_bytes) / 2**30,
        }
        for device, use in memory.items()
        for time_s, num_bytes in zip(use.times_s, use.activation_bytes, strict=True)
    ]  # fmt: skip
    most_bytes = NEAR * max((use.peak.num_bytes for use in memory.values()), default=0.0)
    limits = [
        {"device": device, "GiB": use.limit_bytes / 2**30}
        for device, use in memory.items()
        if use.limit_bytes <= most_bytes
    ]
    color = alt.Color("device:N", title="device", legend=_legend(memory))
    y = alt.Y("GiB:Q", title="GiB held" + (" (dashed: limit)" if limits else ""))
    lines = (
        alt.Chart(_data(rows))
        .mark_line(interpolate="step-after")
        .encode(
            x=alt.X("time:Q", title=unit.name), y=y, color=color,
            tooltip=["device:N", alt.Tooltip("time:Q", title=unit.name), "GiB:Q"],
        )
    )  # fmt: skip
    rules = alt.Chart(_data(limits)).mark_rule(strokeDash=[5, 4]).encode(y=y, color=color)
    title = "Memory over time: weights, gradients, states and activations"
    return (lines + rules).properties(width=WIDTH - 60, height=220, title=title)


def cost_chart(outcomes: Sequence[Outcome]) -> Chart:
    """Cost against latency of every possible instance; both axes logarithmic."""
    rows = [
        {
            "instance": o.name, "USD per 1,000": o.cost.usd_per_1k,
            "latency": o.report.latency_s.p50 * 1e3, "low": o.report.latency_band_s[0] * 1e3,
            "high": o.report.latency_band_s[1] * 1e3,
        }
        for o in outcomes
        if o.cost and o.report
    ]  # fmt: skip
    x = alt.X(
        "latency:Q",
        title="latency of a batch, ms (bar: 90 % interval)",
        scale=alt.Scale(type="log"),
    )
    y = alt.Y("USD per 1,000:Q", title="USD per 1,000 inferences", scale=alt.Scale(type="log"))
    base = alt.Chart(_data(rows))
    bars = base.mark_rule(opacity=0.5).encode(
        alt.X("low:Q", scale=alt.Scale(type="log")), y, x2="high:Q"
    )
    legend = alt.Legend(orient="bottom", columns=4, labelLimit=WIDTH, symbolLimit=0)
    points = base.mark_point(size=90, filled=True, opacity=1).encode(
        x, y, color=alt.Color("instance:N", legend=legend),
        shape=alt.Shape("instance:N", legend=legend),
        tooltip=["instance:N", alt.Tooltip("latency:Q", title="latency (ms)"), "USD per 1,000:Q"],
    )  # fmt: skip
    return (bars + points).properties(width=WIDTH - 60, height=300, title="Cost against latency")


def fleet_chart(fleets: Sequence[Fleet]) -> Chart:
    """Cost per hour of the smallest fleets."""
    rows: list[dict[str, Any]] = [
        {"fleet": f"{f.replicas} x {f.name}", "USD per hour": f.usd_per_hour}
        for f in fleets
        if f.replicas and f.usd_per_hour is not None
    ]
    return (
        alt.Chart(_data(rows))
        .mark_bar()
        .encode(x="USD per hour:Q", y=alt.Y("fleet:N", sort="x", title=None, axis=WHOLE_LABELS))
        .properties(width=WIDTH - 160, height=24 * max(1, len(rows)), title="Cheapest fleets")
    )


def serving_chart(series: Mapping[str, Sequence[float]]) -> Chart:
    """Arrivals, waiting requests, and servers up and busy over time, one below the other."""
    panels = {
        "arrivals_per_s": ("requests per second", "arrivals"),
        "waiting": ("requests", "waiting"),
        "machines_rented": ("servers", "rented"),
        "servers_up": ("servers", "up"),
        "servers_busy": ("servers", "busy"),
        "running": ("requests", "running"),
        "kv_used": ("share", "KV cache in use"),
        "utilization": ("share", "servers that compute"),
    }
    panels |= {
        f"{role}_{name}": (panels[name][0], f"{role}: {panels[name][1]}")
        for role in ("prefill", "decode")
        for name in ("waiting", "running", "kv_used", "utilization")
    }
    end_s = max(series["time_s"], default=0.0)
    title, unit_s = next(unit for unit in SPANS if end_s < 120 * unit[1] or unit == SPANS[-1])
    rows = [
        {"time": time_s / unit_s, "value": value, "unit": panels[name][0], "line": panels[name][1]}
        for name, values in series.items()
        if name in panels
        for time_s, value in zip(series["time_s"], values, strict=True)
    ]
    return (
        alt.Chart(_data(rows))
        .mark_line(interpolate="step")
        .encode(
            x=alt.X("time:Q", title=title),
            y=alt.Y("value:Q", title=None),
            color=alt.Color("line:N", title=None, legend=alt.Legend(orient="bottom")),
            row=alt.Row("unit:N", title=None, sort=None),
            tooltip=[alt.Tooltip("time:Q", title=title), "line:N", "value:Q"],
        )
        .properties(width=WIDTH - 60, height=110, title="Serving over time, mean of the runs")
        .resolve_scale(y="independent")
    )
