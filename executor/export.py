"""Ways to capture a module, tried in order: torch.export, then the documented ways around it.

Every way fixes all sizes at those of the example inputs and computes on fake or meta tensors.
Sources: "torch.export programming model" and "Custom operators" of the torch 2.13 documentation.
"""

import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace

import torch
from torch import fx
from torch.export import ExportedProgram

from executor.fake import on_fake_cpu, with_real_weights
from executor.joining import captured_by_dynamo
from executor.program import Program, from_exported, tensors_in
from executor.sources import Model, user_line
from executor.tracing import captured_by_tracing

Way = Callable[[Model], Program]


def export(model: Model, way: str = "") -> Program:
    """Capture a module for its example inputs, by the first of `WAYS` that can, or by one of them.

    Operators that write in place are rewritten to return new tensors.

    Raises:
        ValueError: no way can follow the module; the user's line and the way out are named.
    """
    failures: dict[str, Exception] = {}
    on_meta = any(weight.is_meta for weight in model.module.parameters())
    if on_meta or any(tensor.is_meta for tensor in model.tensors):
        model = on_fake_cpu(model)
    for name in [way] if way else WAYS:
        try:
            with torch.no_grad(), quiet():
                program = WAYS[name](model)
            _check_sizes(program)
        except Exception as error:
            failures[name] = error
            continue
        failed = tuple(f"{n} failed: {_reason(e)}" for n, e in failures.items())
        return replace(program, notes=(*model.notes, *failed, *program.notes))
    raise refusal(model, failures) from next(iter(failures.values()))


def refusal(model: Model, failures: dict[str, Exception]) -> ValueError:
    """The error that says why no way could: the user's line, the reason, the way out."""
    first = next(iter(failures.values()))
    return ValueError(
        f"model '{model.name}' cannot be captured{user_line(first)}: {_explained(failures)}; "
        f"tried {', '.join(failures)}"
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what an attempt prints and logs to itself, and leave torch as it was before."""
    depth = torch._C._functorch.get_dynamic_layer_stack_depth()
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    silence = io.StringIO()
    try:
        with warnings.catch_warnings(), redirect_stdout(silence), redirect_stderr(silence):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        torch._C._functorch.pop_dynamic_layer_stack_and_undo_to_depth(depth)


def _nonstrict(model: Model) -> Program:
    """torch.export by running the Python code on fake tensors; outputs may be any objects."""
    hook = model.module.register_forward_hook(lambda module, args, out: tuple(tensors_in(out)))
    try:
        program = torch.export.export(model.module, model.inputs, dict(model.kwargs), strict=False)
    finally:
        hook.remove()
    return _functional(program, "torch.export (strict=False)")


def _strict(model: Model) -> Program:
    """torch.export by reading the bytecode: follows NumPy calls, not every builtin."""
    torch._dynamo.reset()
    return _functional(
        torch.export.export(model.module, model.inputs, dict(model.kwargs), strict=True),
        "torch.export (strict=True)",
    )


def _functional(program: ExportedProgram, name: str) -> Program:
    if any(_works_in_place(node) for node in program.graph.nodes):
        program = program.run_decompositions({})
    return from_exported(program, name)


def _works_in_place(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


WAYS: dict[str, Way] = {
    "torch.export (strict=False)": _nonstrict,
    "torch.export (strict=True)": _strict,
    "decompositions (make_fx)": with_real_weights(captured_by_tracing),
    "dynamo": with_real_weights(captured_by_dynamo),
}
"""From the way that keeps most (module paths, whole operators) to the one that follows most."""


def _check_sizes(program: Program) -> None:
    """Refuse a tensor whose size depends on data: no cost could be given to what reads it."""
    for node in program.graph.nodes:
        value = node.meta.get("val")
        sizes = value.shape if isinstance(value, torch.Tensor) else ()
        if any(not isinstance(size, int) for size in sizes):
            line = (node.meta.get("stack_trace") or "").strip().split("\n")
            raise ValueError(
                f"data-dependent size: operator '{node.name}' gives shape {tuple(sizes)}"
                + (f" ({' '.join(part.strip() for part in line[-2:])})" if line[0] else "")
            )


DATA_DEPENDENT = re.compile(
    r"data-dependent|_local_scalar_dense|meta tensors?\b.*(item|scalar)|GuardOnDataDependent|"
    r"DynamicOutputShape|item\(\) (cannot|on)|unbacked",
    re.IGNORECASE,
)
NO_SHAPE_RULE = re.compile(
    r"(?:no fake impl|meta|Could not run|operator)[^:]*?(\w+::\w+)", re.DOTALL
)


def _explained(failures: dict[str, Exception]) -> str:
    """The first way's reason, and what the user can do about it."""
    text = _reason(next(iter(failures.values())))
    everything = " ".join(str(error) for error in failures.values())
    custom = NO_SHAPE_RULE.search(everything)
    if custom and not custom[1].startswith("aten::"):
        name = custom[1]
        return (
            f"operator '{name}' has no shape rule (fake kernel); give it one with "
            f"@torch.library.register_fake('{name}') that returns an empty tensor of the "
            "output's shape and dtype"
        )
    if DATA_DEPENDENT.search(everything):
        return (
            f"{text}: data-dependent control flow or size; compute both sides and choose with "
            "torch.where, use torch.cond, or make the choice an argument of the constructor"
        )
    return text


def _reason(error: Exception) -> str:
    lines = [line for line in str(error).strip().split("\n") if line.strip()]
    return lines[0].strip().rstrip(".:") if lines else type(error).__name__
