"""What a plan of a decode step means for generation: first token, further tokens, all of them."""

from collections import defaultdict
from dataclasses import dataclass

from hardware.documents import STRICT
from scheduler.answer_plans import plan_prefill, prefill_problem
from scheduler.generation import Generation
from scheduler.plan import Plan
from scheduler.problem import Problem
from scheduler.report import Report


@dataclass(frozen=True)
class GenerationReport:
    """Generation of a batch of answers.

    Attributes:
        binds: the phase that takes more of `seconds`: `prefill` or `decode`.
        kv_bytes: the cache of keys and values at its largest, over all devices.
        ttft_s: from the prompt to the first token: the prefill.
        tpot_s: each further token: the decode step at the middle of the answer.
        seconds: ttft_s + (new_tokens - 1) * tpot_s.
        tokens_per_s: of the whole batch, over those seconds.
        ttft_band_s, tpot_band_s, band_s: their 90 % intervals; the last as if both erred together.
    """

    __pydantic_config__ = STRICT

    prompt_tokens: int
    new_tokens: int
    context: int
    binds: str
    kv_bytes: float
    ttft_s: float
    tpot_s: float
    seconds: float
    tokens_per_s: float
    ttft_band_s: tuple[float, float]
    tpot_band_s: tuple[float, float]
    band_s: tuple[float, float]


def predict_generation(
    problem: Problem, plan: Plan, generation: Generation, decode: Report
) -> GenerationReport:
    """Predict a generation from its decode step as a plan runs it; weights stay in place.

    Raises:
        InfeasibleError: the prefill does not fit beside the cache, or lacks a link.
    """
    prefill = prefill_problem(problem, generation, plan.splits)
    first = plan_prefill(problem, plan, prefill)
    placement, ttft_s, tpot_s = first.placement, first.value, decode.latency_s.p50
    placed: dict[str, list[int]] = defaultdict(list)
    for row, op in enumerate(prefill.graph.ops):
        placed[placement[op.name]].append(row)
    low, high = prefill.costs.band(placed)
    ttft_band_s = (ttft_s * low, ttft_s * high)
    seconds = generation.seconds(ttft_s, tpot_s)
    soonest_s, latest_s = (
        generation.seconds(first_s, next_s)
        for first_s, next_s in zip(ttft_band_s, decode.latency_band_s, strict=True)
    )
    return GenerationReport(
        prompt_tokens=generation.prompt_tokens,
        new_tokens=generation.new_tokens,
        context=generation.context,
        binds="prefill" if 2 * ttft_s > seconds else "decode",
        kv_bytes=generation.kv_bytes,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        seconds=seconds,
        tokens_per_s=generation.new_tokens * generation.decode.samples / seconds,
        ttft_band_s=ttft_band_s,
        tpot_band_s=decode.latency_band_s,
        band_s=(soonest_s, latest_s),
    )
