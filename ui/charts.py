"""The charts of report and app. They draw what they are given and compute only positions.

Altair, because Streamlit brings it (Plotly would add 64 MB).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from hardware.units import format_count, format_seconds
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
    points = (
        alt.Chart(_data(nodes))
        .mark_circle(size=110, opacity=1)
        .encode(
            across, down, color=alt.Color("device:N", title="device", legend=_legend(placement)),
            tooltip=["operator:N", "kind:N", "module:N", "device:N", "work:N"],
        )
    )  # fmt: skip
    height = 40 + 22 * (max(node["y"] for node in nodes) + 1)  # type: ignore[operator, type-var]
    return (lines + points).properties(width=WIDTH, height=height, title="Graph by device")


def _legend(placement: Mapping[str, str]) -> Any:
    """Below the chart, names of many replicas one below the other."""
    is_long = max(map(len, placement.values())) > 20
    return alt.Legend(orient="bottom", labelLimit=WIDTH, columns=1 if is_long else 8)


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


def timeline_chart(sides: Mapping[str, Sequence[Span]], title: str) -> Chart:
    """Gantt charts on one time axis, one above the other: prediction above measurement."""
    rows = [
        {
            "side": side, "resource": span.resource, "start": span.start_s * 1e3,
            "end": span.end_s * 1e3, "name": span.name, "duration": format_seconds(span.duration_s),
            "micro-batch": str(span.micro_batch),
        }
        for side, spans in sides.items()
        for span in list(spans)[:MAX_SPANS]
    ]  # fmt: skip
    resources = len({row["resource"] for row in rows})
    numbers = sorted({span.micro_batch for spans in sides.values() for span in spans})
    return (
        alt.Chart(_data(rows))
        .mark_bar(stroke="white", strokeWidth=0.3)
        .encode(
            x=alt.X("start:Q", title="milliseconds"), x2="end:Q",
            y=alt.Y("resource:N", title=None),
            color=alt.Color(
                "micro-batch:N",
                sort=[str(number) for number in numbers],
                scale=alt.Scale(scheme="tableau10"),
                legend=alt.Legend(orient="bottom"),
            ),
            row=alt.Row("side:N", title=None, sort=list(sides)),
            tooltip=["name:N", "resource:N", "duration:N", "micro-batch:N"],
        )
        .properties(width=WIDTH - 60, height=28 * resources, title=title)
    )  # fmt: skip


def memory_chart(memory: Mapping[str, MemoryUse]) -> Chart:
    """Memory of every device over the time of a replay; limits (dashed) near enough to be seen."""
    rows = [
        {
            "device": device, "milliseconds": time_s * 1e3,
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
    color = alt.Color("device:N", title="device")
    y = alt.Y("GiB:Q", title="GiB held" + (" (dashed: limit)" if limits else ""))
    lines = (
        alt.Chart(_data(rows))
        .mark_line(interpolate="step-after")
        .encode(
            x=alt.X("milliseconds:Q"), y=y, color=color,
            tooltip=["device:N", "milliseconds:Q", "GiB:Q"],
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
    points = base.mark_circle(size=90).encode(
        x, y, color=alt.Color("instance:N"), tooltip=["instance:N", "latency:Q", "USD per 1,000:Q"]
    )
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
        .encode(x="USD per hour:Q", y=alt.Y("fleet:N", sort="x", title=None))
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
    rows = [
        {"hours": time_s / 3600, "value": value, "unit": panels[name][0], "line": panels[name][1]}
        for name, values in series.items()
        if name in panels
        for time_s, value in zip(series["time_s"], values, strict=True)
    ]
    return (
        alt.Chart(_data(rows))
        .mark_line(interpolate="step")
        .encode(
            x=alt.X("hours:Q", title="hours"),
            y=alt.Y("value:Q", title=None),
            color=alt.Color("line:N", title=None),
            row=alt.Row("unit:N", title=None, sort=None),
            tooltip=["hours:Q", "line:N", "value:Q"],
        )
        .properties(width=WIDTH - 60, height=110, title="Serving over time, mean of the runs")
        .resolve_scale(y="independent")
    )
