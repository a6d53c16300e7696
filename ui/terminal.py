"""What a person reads in the terminal: progress on standard error, tables on standard output."""

import math
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TextColumn, TimeElapsedColumn
from rich.table import Table

from hardware.units import format_bytes, format_count, format_seconds, format_usd
from scheduler.compiled import compiling
from scheduler.plan import Plan
from scheduler.report import Report
from simulator.whatif import Outcome
from ui.pipeline import Measured
from ui.prepare import Prepared
from ui.steps import COMPILING, Tell

out = Console(highlight=False)
notes = Console(stderr=True, highlight=False)
if not out.is_terminal:
    out = Console(highlight=False, width=132)


@contextmanager
def steps(text: str) -> Iterator[Tell]:
    """Show a step with a moving bar and its time on standard error."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=notes, refresh_per_second=2) as progress:
        task = progress.add_task(text, total=None)
        with compiling(_row_while_compiling(progress)):
            yield lambda share: progress.update(task, total=1.0, completed=share)
        progress.update(task, total=1.0, completed=1.0)


def _row_while_compiling(progress: Progress) -> Callable[[bool], None]:
    """A row with the time that all loops take to compile; none where they are in the cache."""
    rows: list[Task] = []

    def show(is_compiling: bool) -> None:
        if not rows:
            progress.add_task(COMPILING, total=math.inf)
            rows.append(progress.tasks[-1])
        row, spent_s = rows[0], rows[0].finished_time
        if is_compiling and spent_s is not None:
            row.start_time = progress.get_time() - spent_s
        total = math.inf if is_compiling else 1.0
        progress.update(row.id, total=total, completed=0.0 if is_compiling else 1.0)

    return show


def improved(value: float, bound: float) -> None:
    """Say how far a search is: best value so far, bound so far, in the objective's unit."""
    gap = (value - bound) / value if value > 0 else 0.0
    notes.print(f"best {value:.6g}, bound {bound:.6g}, gap {gap:.2%}")


@contextmanager
def interruptions() -> Iterator[list[int]]:
    """Keep the signals of Ctrl-C, each of which interrupts as ever: a search may end there."""
    pressed: list[int] = []

    def press(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        signal.default_int_handler(number, frame)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def note(text: str) -> None:
    """Say on standard error what a reader must not miss."""
    notes.print(f"[bold yellow]Note:[/] {text}")


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table; all columns but the first are numbers or short words, set to the right."""
    drawn = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for number, column in enumerate(columns):
        drawn.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    out.print(drawn)
    out.print()


def show_capture(document: dict[str, Any], seconds: float) -> None:
    """Totals of a captured graph."""
    totals = document["totals"]
    kinds = list(document["flops_by_kind"].items())[:4]
    rows = [
        ["operators", f"{totals['ops']:,}"],
        ["work", format_count(totals["flops"], "FLOP")],
        ["of which", ", ".join(f"{k} {v / totals['flops']:.1%}" for k, v in kinds)],
        ["parameters", f"{totals['params']:,} ({format_bytes(totals['param_bytes'])})"],
        ["bytes moved", format_bytes(totals["bytes"])],
    ]
    for phase, sums in (document.get("phases") or {}).items():
        work = format_count(sums["flops"], "FLOP")
        state = f", {format_bytes(sums['state_bytes'])} states" if sums["state_bytes"] else ""
        rows.append([phase, f"{work}, {format_bytes(sums['bytes'])} moved{state}"])
    if "generation" in document:
        sizes, prefill = document["generation"], document["prefill"]["totals"]
        held = f"{format_bytes(sizes['kv_bytes'])} for {sizes['context']} tokens"
        rows.append(["cache of keys and values", held])
        rows.append(["prefill: work", format_count(prefill["flops"], "FLOP")])
    rows += [
        ["uncosted operators", ", ".join(document["uncosted_ops"]) or "none"],
        ["captured by", document["captured_by"] or "a file"],
        ["captured in", format_seconds(seconds)],
    ]
    kind = {"decode": "Decode step", "training": "Training step"}.get(document["mode"], "Graph")
    table(f"{kind} of {document['name']}", ["", "value"], rows)


def show_generation(report: Mapping[str, Any]) -> None:
    """A generation as predicted: time to the first token, per further token, and in all."""
    count = f"{report['prompt_tokens']} prompt and {report['new_tokens']} new tokens"
    rows = [
        ["time to first token", format_seconds(report["ttft_s"]), band(report["ttft_band_s"])],
        ["time per output token", format_seconds(report["tpot_s"]), band(report["tpot_band_s"])],
        ["whole answer", format_seconds(report["seconds"]), band(report["band_s"])],
        ["tokens/s of the batch", f"{report['tokens_per_s']:.4g}", ""],
        ["cache of keys and values", format_bytes(report["kv_bytes"]), ""],
    ]
    table(f"Generation of {count}", ["", "predicted", "90 % interval"], rows)
    share = report["ttft_s"] / report["seconds"]
    share = share if report["binds"] == "prefill" else 1 - share
    out.print(f"The {report['binds']} binds: {share:.0%} of the answer.\n")


RUN_OF_MODE = {
    "training": ("training step", "samples/s"),
    "decode": ("decode step", "tokens/s while decoding"),
}
"""What one run of a graph is called, and its rate, in the modes that are no inference."""


def show_prediction(predicted: Report, prepared: Prepared) -> None:
    """A prediction without a measurement beside it."""
    latency, throughput = predicted.latency_band_s, predicted.throughput_band_per_s
    what, per_s = RUN_OF_MODE.get(prepared.graph.mode, ("latency of a batch", "throughput (1/s)"))
    rows = [
        [what, format_seconds(predicted.latency_s.p50), band(latency)],
        [
            per_s,
            f"{predicted.throughput_per_s:.4g}",
            f"{throughput[0]:.4g} to {throughput[1]:.4g}",
        ],
    ]
    rows += [[f"busy {name}", f"{share:.0%}", ""] for name, share in predicted.utilization.items()]
    rows += [
        [f"bytes {k} per micro-batch", format_bytes(v), ""] for k, v in predicted.link_bytes.items()
    ]
    title = f"Prediction of {prepared.scenario.model}"
    table(title, ["", "predicted", "90 % interval"], rows)
    show_provenance(prepared)


def band(interval: Sequence[float]) -> str:
    """Word an interval of seconds."""
    return f"{format_seconds(interval[0])} to {format_seconds(interval[1])}"


def show_comparison(predicted: Report, measured: Measured) -> None:
    """Prediction, measurement and error; then the unsplit model in the same run."""
    real = measured.execution.report
    low, high = real.throughput_band_per_s
    rows = [
        _row(
            "latency of a batch",
            predicted.latency_s.p50,
            real.latency_s.p50,
            band(real.latency_band_s),
        ),
        [
            "throughput (1/s)",
            f"{predicted.throughput_per_s:.4g}",
            f"{real.throughput_per_s:.4g}",
            _error(predicted.throughput_per_s, real.throughput_per_s),
            f"{low:.4g} to {high:.4g}",
        ],
    ]
    for device, seconds in predicted.busy_s.items():
        rows.append(_row(f"busy per micro-batch, {device}", seconds, real.busy_s[device], ""))
    table(
        "Prediction beside measurement",
        ["", "predicted", "measured", "error", "measured range"],
        rows,
    )
    own = [r.throughput_per_s for name, r in measured.baselines.items() if name != "all cores"]
    rows = [
        [
            f"unsplit on {name}",
            f"{r.throughput_per_s:.4g}",
            format_seconds(r.latency_s.p50),
            f"{real.throughput_per_s / r.throughput_per_s:.2f}x",
        ]
        for name, r in measured.baselines.items()
    ]
    rows.append(
        [
            "sum of the devices' own",
            f"{sum(own):.4g}",
            "",
            f"{real.throughput_per_s / sum(own):.2f}x",
        ]
    )
    table(
        "Measured in the same run",
        ["baseline", "throughput (1/s)", "latency", "plan / baseline"],
        rows,
    )
    execution = measured.execution
    verdict = "equal" if execution.outputs_agree else "DIFFER FROM"
    out.print(
        f"{execution.compared.capitalize()} {verdict} the unsplit model's: largest relative "
        f"difference {execution.output_difference:.1e}, tolerance {execution.tolerance:.0e}\n"
    )


def _row(name: str, predicted: float, measured: float, spread: str) -> list[str]:
    return [
        name,
        format_seconds(predicted),
        format_seconds(measured),
        _error(predicted, measured),
        spread,
    ]


def _error(predicted: float, measured: float) -> str:
    return f"{(predicted - measured) / measured:+.1%}"


def show_provenance(prepared: Prepared) -> None:
    """Where the times come from, by device."""
    costs = prepared.problem.costs
    for device in costs.devices:
        out.print(f"times on {device}: {costs.origin(device)}")
    out.print()


def show_outcomes(
    outcomes: list[Outcome], title: str = "What if: the same model elsewhere"
) -> None:
    """Instances by cost, the impossible last with the reason."""
    rows = []
    for o in outcomes:
        if o.report is None or o.cost is None or o.plan is None:
            rows.append([o.name, "", "", "", "", o.reason])
            continue
        rows.append([
            o.name, format_usd(o.cost.usd_per_1k), format_usd(o.cost.usd_per_hour),
            f"{format_seconds(o.report.latency_s.p50)} ({band(o.report.latency_band_s)})",
            f"{o.report.throughput_per_s:.4g}", f"{_devices(o.plan)}; {o.provenance}",
        ])  # fmt: skip
    columns = [
        "instance",
        "USD/1,000",
        "USD/h",
        "latency of a batch (90 %)",
        "1/s",
        "devices; times",
    ]
    table(title, columns, rows)


def _devices(plan: Plan) -> str:
    """'8 gpu + 1 cpu'."""
    kinds = Counter(device.rstrip("0123456789") for device in plan.devices)
    return " + ".join(f"{number} {kind}" for kind, number in kinds.items())
