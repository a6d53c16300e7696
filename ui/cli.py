"""The command line: parse, run a command, word errors, choose the exit code."""

import argparse
import json
import os
import sys
import warnings
from pathlib import Path

from ui.exits import BAD_INPUT, INFEASIBLE, INTERRUPTED, READER_GONE, RUN_FAILED


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = build_parser().parse_args(argv)
    from hardware.errors import InfeasibleError

    warnings.showwarning = _warn  # type: ignore[assignment]
    try:
        code = _command(arguments)
        sys.stdout.flush()
        return code
    except InfeasibleError as error:
        return _fail(arguments, "infeasible", error, INFEASIBLE)
    except ValueError as error:
        return _fail(arguments, "error", error, BAD_INPUT)
    except RuntimeError as error:
        return _fail(arguments, "run failed", error, RUN_FAILED)
    except KeyboardInterrupt:
        return _fail(arguments, "interrupted", "stopped by the user", INTERRUPTED)
    except (BrokenPipeError, SystemExit) as end:
        # rich makes SystemExit of it
        if not isinstance(end.__context__ or end, BrokenPipeError):
            raise
        return _end_silently()


def _end_silently() -> int:
    """End as other tools do when what reads them has had enough (`| head`)."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return READER_GONE


def _command(arguments: argparse.Namespace) -> int:
    from ui import commands

    code: int = getattr(commands, arguments.command)(arguments)
    return code


def _warn(message: Warning | str, *_: object) -> None:
    print(f"apportion: warning: {message}", file=sys.stderr)


def _fail(arguments: argparse.Namespace, word: str, reason: object, code: int) -> int:
    print(f"apportion: {word}: {reason}", file=sys.stderr)
    if arguments.json:
        print(json.dumps({"error": str(reason), "kind": word, "exit_code": code}))
    return code


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(
        prog="apportion",
        description="Split PyTorch models across mixed hardware, predict latency and cloud cost, "
        "and run the plan to check the prediction.",
        epilog="Exit codes: 0 done, 1 infeasible, 2 bad input, 3 a run failed, 130 interrupted.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument(
            "--json", action="store_true", help="one JSON document on standard output"
        )
        return added

    def scenario(added: argparse.ArgumentParser, text: str = "scenario file (YAML)") -> None:
        added.add_argument("scenario", type=Path, metavar="SCENARIO", help=text)

    run = command("run", "capture, plan, simulate, execute, compare, report: the main job")
    scenario(run)
    recalibrate = "measure this machine again"
    run.add_argument("--recalibrate", action="store_true", help=recalibrate)
    capture = command("capture", "turn a model into a graph file with totals")
    capture.add_argument(
        "model", metavar="MODEL",
        help="zoo:NAME, python:MODULE:FACTORY, python:FILE.py:FACTORY, hf:FILE, "
        "onnx:FILE or graph:FILE",
    )  # fmt: skip
    capture.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the graph here")
    capture.add_argument("--batch", type=int, default=1, help="inferences at once (default 1)")
    capture.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")
    grains = ("operators", "chains", "layers", "blocks")
    capture.add_argument("--grain", choices=grains, default=grains[0], help="fuse operators")
    capture.add_argument("--nodes", type=int, metavar="N", help="fuse to at most N operators")
    modes = ["inference", "training", "generation"]
    capture.add_argument("--mode", choices=modes, default="inference")
    capture.add_argument("--tokens", type=int, help="tokens that a model of text reads at once")
    capture.add_argument("--prompt-tokens", type=int, help="of a generation (default 128)")
    capture.add_argument("--new-tokens", type=int, help="of a generation (default 128)")
    capture.add_argument("--optimizer", choices=["adam", "sgd"], help="of training (default adam)")
    capture.add_argument("--momentum", type=float, help="of sgd")
    plan = command("plan", "place the model's operators on the devices")
    plan.add_argument("scenario", type=Path, nargs="?", metavar="SCENARIO", help="scenario file")
    plan.add_argument("--graph", type=Path, metavar="FILE", help="a graph file, without scenario")
    plan.add_argument("--cluster", type=Path, metavar="FILE", help="cluster file for --graph")
    plan.add_argument("--objective", choices=["throughput", "latency", "cost"])
    plan.add_argument("--usd-per-hour", type=float, metavar="USD", help="rent, for objective cost")
    plan.add_argument(
        "--latency-bound", type=float, metavar="S", help="with objective cost: refuse slower plans"
    )
    plan.add_argument("--grain", choices=grains, help="place these together (default operators)")
    plan.add_argument("--algorithm", metavar="NAME", help="one algorithm; auto takes the best")
    plan.add_argument(
        "--time-limit", type=float, default=8.0, metavar="S",
        help="seconds for search and bounds (default 8); 0 answers from heuristics alone",
    )  # fmt: skip
    plan.add_argument(
        "--explain", action="store_true", help="say why: alternatives, what binds, what would help"
    )
    plan.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the plan here")
    for name, text in (
        ("simulate", "predict latency, throughput, utilisation and cost"),
        ("execute", "run the plan on this machine and measure"),
    ):
        added = command(name, text)
        scenario(added, "scenario (YAML) or plan file (JSON)")
        added.add_argument(
            "--timeline", type=Path, metavar="FILE",
            help="write the timeline as a trace (JSON) that ui.perfetto.dev opens",
        )  # fmt: skip
        if name == "simulate":
            _replay_options(added)
    compare = command("compare", "simulate what-ifs side by side")
    compare.add_argument("scenarios", type=Path, nargs="+", metavar="SCENARIO")
    compare.add_argument(
        "--vary", action="append", default=[], metavar="KEY=A,B,C",
        help="e.g. model.dtype=float32,bfloat16; repeat for every combination",
    )  # fmt: skip
    size = command("size", "find the smallest fleet of each instance that keeps a promise")
    scenario(size)
    devices = command(
        "devices",
        "list the catalog and this machine's profile; show one device; or check figures against "
        "the catalog (exit code 2 where anything is found)",
    )
    devices.add_argument("name", nargs="?", metavar="NAME|check", help="one device, or 'check'")
    devices.add_argument(
        "file",
        nargs="?",
        type=Path,
        metavar="FILE",
        help="with check: a device file, a list of prices, or a table; without it, the catalog",
    )
    devices.add_argument(
        "--against",
        type=Path,
        metavar="CSV",
        help="with check: a table of devices (name, bf16_dense, mem_gb, ...), of prices (instance, "
        "on_demand_usd_h) or of conflicts (where, field, says, should_be)",
    )
    calibrate = command("calibrate", "measure a device of this machine, in under 3 minutes")
    calibrate.add_argument("--device", metavar="NAME", help="cpu0, gpu0, all (every core), ...")
    calibrate.add_argument("--threads", type=int, metavar="N", help="cores of a CPU to use")
    calibrate.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the profile")
    calibrate.add_argument(
        "--load", type=Path, metavar="FILE", help="take a profile from a file, measure nothing"
    )
    calibrate.add_argument(
        "--foreign", action="store_true", help="with --load: of another machine or torch, too"
    )
    command("prices", "show the catalog's instances and prices")
    ui = command("ui", "open the app in a browser")
    ui.add_argument("--port", type=int, default=8501)
    ui.add_argument("--no-browser", action="store_true", help="serve without opening a browser")
    return parser


def _replay_options(simulate: argparse.ArgumentParser) -> None:
    simulate.add_argument(
        "--engine", choices=["auto", "simpy", "fast"], help="of the replay (default auto)"
    )
    simulate.add_argument(
        "--sharing", choices=["fair", "fifo"],
        help="links of one medium share its bandwidth (default fair), or take turns",
    )  # fmt: skip
    simulate.add_argument(
        "--pipeline", choices=["1f1b", "gpipe"],
        help="order of forward and backward passes of a training step's micro-batches",
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
