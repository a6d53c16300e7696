"""Replicas in words, in documents, and in a scenario."""

from dataclasses import replace

import pytest
from test_all_reduce import by_hand, training

from ui.replication import device_words, replication_document, replication_lines, seats, shares
from ui.scenario import parse_scenario


def test_replicas_are_shown_with_their_shares_and_the_sum_of_their_gradients():
    problem = training(3, "abc", 6)
    plan = by_hand(problem, [2, 1], ["abb", "c"])
    assert device_words(plan) == "(a 1/3 + b 2/3), c"
    assert seats(plan)["f0"] == "(a 1/3 + b 2/3)"
    assert seats(plan)["f2"] == "c"
    (team,) = replication_document(problem, plan)["teams"]
    assert team["shares"] == {"a": pytest.approx(1 / 3), "b": pytest.approx(2 / 3)}
    assert team["gradient_bytes"] == 200
    (words,) = replication_lines(problem, plan)
    assert "a 1/3 + b 2/3: replicas, which take micro-batches in turn and sum 200 B" in words
    alone = by_hand(problem, [3], ["a"])
    assert replication_lines(problem, alone) == []
    assert device_words(alone) == "a"
    assert (shares(plan), shares(alone)) == ([team["shares"]], [])


def test_batch_normalization_keeps_statistics_per_replica():
    problem = training(1, "ab", 2)
    ops = tuple(
        replace(op, kind="norm", target="aten._native_batch_norm_legit") if op.name == "f0" else op
        for op in problem.graph.ops
    )
    problem = replace(problem, graph=replace(problem.graph, ops=ops))
    assert (
        "running statistics of its own"
        in replication_lines(problem, by_hand(problem, [1], ["ab"]))[1]
    )
    assert replication_document(problem, by_hand(problem, [1], ["a"]))["notes"] == []


def asked(**more):
    model = {"source": "zoo:cifar10-cnn", "batch": 4, **more.pop("model", {})}
    return parse_scenario(
        {"model": model, "hardware": "local", "objective": "throughput", **more}, "s.yaml", "s"
    )


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"objective": "latency"}, "one batch alone gets no faster"),
        ({"model": {"mode": "generation"}}, "each step needs the one before"),
        ({"model": {"mode": "training"}, "num_micro_batches": 1}, "has none to share"),
        ({"model": {"mode": "training", "batch": 1}}, "has none to share"),
    ],
)
def test_replicas_that_cannot_be_are_refused_with_a_way_out(more, words):
    with pytest.raises(ValueError, match=rf"constraints.replicate: true, but .*{words}"):
        asked(constraints={"replicate": True}, **more)
    asked(**more)


def test_replicas_are_a_choice():
    assert asked().constraints.replicate is None
    assert asked(constraints={"replicate": True}).constraints.replicate
    with pytest.raises(ValueError, match="replicate is false; leave it out"):
        asked(constraints={"replicate": False}, algorithm="replicated")
