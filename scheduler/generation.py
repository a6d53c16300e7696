"""Generation of text: one prefill of the prompt, then a decode step for each further token."""

from collections import Counter, defaultdict
from dataclasses import dataclass

from scheduler.graph import Graph
from scheduler.problem import Placement


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


def prefill_placement(generation: Generation, placement: Placement) -> dict[str, str]:
    """Put the prefill where the decode step runs: both read the same weights and cache.

    An operator goes to the device of its weights, else of most operators of its module, else of
    what it reads.
    """
    decode, prefill = generation.decode, generation.prefill
    by_weight = {name: placement[op.name] for op in decode.ops for name in op.weights}
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for op in decode.ops:
        votes[op.module][placement[op.name]] += 1
    placed: dict[str, str] = {}
    for op in prefill.ops:
        known = [by_weight[name] for name in op.weights if name in by_weight]
        if not known and op.module in votes:
            known = [votes[op.module].most_common(1)[0][0]]
        if not known:
            known = [placed[prefill.producer[t]] for t in op.inputs if t in prefill.producer]
        placed[op.name] = known[0] if known else next(iter(placement.values()))
    return placed
