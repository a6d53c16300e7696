"""Sizes of an einsum as one batched matrix product."""

from collections.abc import Mapping, Sequence
from math import prod


def einsum_dims(equation: str, shapes: Sequence[Sequence[int]]) -> Mapping[str, int]:
    """Sizes batch, m, n, k, so that 2 batch m n k is the work of contracting from left to right.

    Several products are given the sizes of the largest of them, with its batch scaled to the sum.
    """
    left, arrow, result = equation.replace(" ", "").replace("...", "").partition("->")
    terms = left.split(",")
    if not arrow:
        result = "".join(letter for letter in left if left.count(letter) == 1)
    size: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        size |= zip(term, shape[len(shape) - len(term) :], strict=True)
    lead = max((prod(s[: len(s) - len(t)]) for t, s in zip(terms, shapes, strict=True)), default=1)
    products: list[dict[str, int]] = []
    done = set(terms[0])
    for i, term in enumerate(terms[1:], 2):
        kept = set(result).union(*terms[i:])
        products.append(_product(done, set(term), kept, size))
        done = (done | set(term)) & kept
    if not products:
        return {"batch": 1, "m": lead * prod(size.values()), "n": 1, "k": 1}
    largest = max(products, key=lambda dims: prod(dims.values()))
    whole = sum(prod(dims.values()) for dims in products)
    batch = largest["batch"] * whole // prod(largest.values())
    return {**largest, "batch": lead * batch}


def _product(a: set[str], b: set[str], kept: set[str], size: Mapping[str, int]) -> dict[str, int]:
    axes = {"batch": a & b & kept, "m": a - b, "n": b - a, "k": (a & b) - kept}
    return {name: prod(size[letter] for letter in letters) for name, letters in axes.items()}
