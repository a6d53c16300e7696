"""Capture of generation: the prefill and the decode step of a decoder with its cache."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor, nn

from executor.capture import to_graph
from executor.export import export
from executor.sources import Model, build_from
from executor.zoo import DECODERS, check_positions
from hardware.documents import nearest
from scheduler.generation import Generation
from scheduler.ir.graph import DTYPE_BYTES, Graph, Op

Decoder = Callable[[int, int, int], tuple[nn.Module, tuple[Tensor, ...]]]
"""(batch, new tokens, past tokens) -> a step and its inputs: token ids, then keys and values."""


def capture_generation(
    source: str, batch: int, dtype: str, prompt_tokens: int = 128, new_tokens: int = 128
) -> Generation:
    """Capture both phases without allocating weights.

    Raises:
        ValueError: the source is no decoder with a cache, or it cannot be captured.
    """
    for key, count in (("prompt_tokens", prompt_tokens), ("new_tokens", new_tokens)):
        if count < 1:
            raise ValueError(f"model.{key} must be at least 1, got {count}")
    decoder = find_decoder(source)
    check_positions(source, prompt_tokens + new_tokens)
    past = prompt_tokens + new_tokens // 2
    prefill, _ = _step(source, decoder, (batch, prompt_tokens, 0), dtype)
    decode, cache = _step(source, decoder, (batch, 1, past), dtype)
    if not cache:
        raise ValueError(f"{source}: its decode step reads no cache of keys and values")
    growth = (prompt_tokens + new_tokens) / past
    return Generation(
        replace(prefill, mode="prefill"),
        _with_cache(decode, cache, growth),
        prompt_tokens,
        new_tokens,
    )


def find_decoder(source: str) -> Decoder:
    """The step of a zoo decoder, or of a Hugging Face configuration of one.

    Raises:
        ValueError: the source is none.
    """
    scheme, _, rest = source.partition(":")
    if scheme == "zoo" and rest in DECODERS:
        return DECODERS[rest]
    if scheme == "hf":
        from executor.hugging_face_decoder import decoder_step

        return decoder_step(rest)
    accepted = nearest(rest, list(DECODERS)) if scheme == "zoo" else ""
    raise ValueError(
        f"model.mode generation needs a decoder: zoo:{', zoo:'.join(DECODERS)} or hf:FILE, "
        f"got '{source}'{accepted if 'did you mean' in accepted else ''}"
    )


def _step(
    source: str, decoder: Decoder, sizes: tuple[int, int, int], dtype: str
) -> tuple[Graph, Mapping[str, int]]:
    """A step's graph, and the bytes of the cache by the name of the input that holds it."""
    model: Model = build_from(source, decoder, sizes, dtype, "meta")
    program = export(model)
    kept = replace(program, returned=program.returned[:1])  # new keys and values stay in the cache
    graph = to_graph(kept, source.partition(":")[2], sizes[0])
    held = {t.name: t.num_bytes for t in graph.inputs[1:]}
    return graph, held


def _with_cache(graph: Graph, cache: Mapping[str, int], growth: float) -> Graph:
    """The decode graph with the cache as state of the operators that read it, not as inputs."""
    ops = tuple(_reading_in_place(op, cache, growth) for op in graph.ops)
    inputs = tuple(t for t in graph.inputs if t.name not in cache)
    return replace(graph, ops=ops, inputs=inputs, mode="decode")


def _reading_in_place(op: Op, cache: Mapping[str, int], growth: float) -> Op:
    """Count the cache as state. Where the capture copies it to append, servers write in place."""
    held = sum(cache[name] for name in op.inputs if name in cache)
    if not held:
        return op
    inputs = tuple(name for name in op.inputs if name not in cache)
    state_bytes = round(held * growth)
    if op.kind != "copy":
        return replace(op, inputs=inputs, state_bytes=state_bytes)
    appended = op.bytes_read - held
    return replace(
        op,
        inputs=inputs,
        state_bytes=state_bytes,
        bytes_read=appended,
        bytes_written=appended,
        dims={"size": round(appended / DTYPE_BYTES[op.dtype])},
    )
