"""Everything on one device, and the greedy in-order fill of several."""

from hardware.errors import InfeasibleError
from hardware.units import format_bytes
from scheduler.problem import Placement, Problem


def single_device(problem: Problem, device: str) -> Placement:
    """Place every operator on one device."""
    return {op.name: device for op in problem.graph.ops}


def memory_fill(problem: Problem) -> Placement:
    """Fill devices with parameters in order, the fastest first; go on when one is full.

    What `device_map="auto"` of Hugging Face Accelerate does (accelerate.infer_auto_device_map):
    a shared parameter stays with its first user.

    Raises:
        InfeasibleError: the parameters do not fit all devices together.
    """
    total_s = problem.costs.seconds.sum(axis=0)
    order = sorted(problem.costs.devices, key=lambda device: total_s[problem.device_index[device]])
    free_bytes = {device: problem.memory_limit_bytes(device) for device in order}
    placement: dict[str, str] = {}
    held: dict[str, str] = {}
    current = 0
    for op in problem.graph.ops:
        new_bytes = sum(size for name, size in op.weights.items() if name not in held)
        while current < len(order) and free_bytes[order[current]] < new_bytes:
            current += 1
        if current == len(order):
            need = sum(problem.graph.weights().values())
            limit = sum(problem.memory_limit_bytes(device) for device in order)
            raise InfeasibleError(
                f"parameters need {format_bytes(need)}, all devices together take "
                f"{format_bytes(limit)}; operator '{op.name}' is the first that fits nowhere"
            )
        device = next((held[name] for name in op.weights if name in held), order[current])
        device = problem.pinned.get(op.name, device)
        free_bytes[device] -= new_bytes
        held |= {name: device for name in op.weights if name not in held}
        placement[op.name] = device
    return placement
