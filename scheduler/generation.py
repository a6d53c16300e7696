"""Generation of text: one prefill of the prompt, then a decode step for each further token."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from math import isfinite

from scheduler.ir.graph import Graph
from scheduler.problem import Placement, Problem
from scheduler.tensor_parallel.split_rules import Split, Splits, cut_of


@dataclass(frozen=True)
class Generation:
    """The graphs of both phases of a decoder; what is planned is the decode step.

    Attributes:
        prefill: reads the whole prompt and gives the first token.
        decode: gives one token, at the middle of the generation; a step's time grows linearly
            with what the cache holds, so this is the mean step. Its operators' `state_bytes` are
            the cache at its largest, of `context` tokens.
    """

    prefill: Graph
    decode: Graph
    prompt_tokens: int
    new_tokens: int

    @property
    def context(self) -> int:
        """Tokens in the cache at the end."""
        return self.prompt_tokens + self.new_tokens

    @property
    def kv_bytes(self) -> float:
        """Bytes of the cache at its largest: 2 layers * kv_heads * depth * context * batch."""
        return sum(op.state_bytes for op in self.decode.ops)

    def seconds(self, prefill_s: float, decode_s: float) -> float:
        """Seconds to generate: the prefill gives the first token, decode steps the others."""
        return prefill_s + (self.new_tokens - 1) * decode_s


def prefill_splits(generation: Generation, splits: Splits) -> dict[str, Split]:
    """The prefill's operators that read a weight whose columns the decode step has split."""
    by_weight = {
        name: splits[op.name]
        for op in generation.decode.ops
        if op.name in splits and splits[op.name].dim > 0
        for name in op.weights
    }
    chosen: dict[str, Split] = {}
    for op in generation.prefill.ops:
        found = [by_weight[name] for name in op.weights if name in by_weight]
        if found and cut_of(generation.prefill, op, found[0]):
            chosen[op.name] = found[0]
    return chosen


def follow(source: Graph, target: Problem, placement: Placement) -> dict[str, str]:
    """Put one phase where a placement has the other, `source`: they share weights and cache.

    An operator goes to the device of its weights, else of most operators of its module, else of
    what it reads, else of any operator: to the first of them that can run it. Colocated operators
    follow the first of them.
    """
    graph, seconds = target.graph, target.seconds
    by_weight = {name: placement[op.name] for op in source.ops for name in op.weights}
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for op in source.ops:
        votes[op.module][placement[op.name]] += 1
    used = list(dict.fromkeys(placement.values()))
    placed: dict[str, str] = {}
    of_unit: dict[int, str] = {}
    for row, op in enumerate(graph.ops):
        wanted = [by_weight[name] for name in op.weights if name in by_weight]
        wanted += [device for device, _ in votes[op.module].most_common()]
        wanted += [placed[graph.producer[t]] for t in op.inputs if t in graph.producer]
        able = (d for d in wanted + used if isfinite(seconds[row, target.device_index[d]]))
        first = next(able, used[0])
        placed[op.name] = of_unit.setdefault(int(target.unit[row]), first)
    return placed
