import json
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from conftest import make_op, write_layers

from hardware.cluster import Cluster, Link
from hardware.errors import InfeasibleError
from hardware.profile import DeviceProfile
from hardware.provenance import Provenance
from scheduler.cost_model.costs import cost_table
from scheduler.ir.fused import fused
from scheduler.ir.graph import Graph, Tensor
from simulator.alone import alone, least_server_s
from simulator.answer_figures import measure_answers, queue_growth_per_s
from simulator.answers import Deployment, Transfer, answer
from simulator.arrivals import Slo, Traffic, draw
from simulator.generation_capacity import GenerationCandidate, load_of, size_generations
from simulator.generation_experiment import experiment_generations, study_generations
from simulator.generation_fleet import GenerationFleet, ServerKind
from simulator.generations import Continuous, ContinuousBatching, Fleet, Generations, Server
from simulator.lengths import Lengths, draw_lengths
from simulator.modelled_steps import (
    ServerModel,
    kv_blocks,
    model_step_times,
    relative_band,
    with_cache_only,
)
from simulator.serving import Limits, Serving
from simulator.step_times import StepTimes
from ui.cli import main
from ui.scenario import read_scenario
from ui.sizing import size, why_none

LITERAL = Provenance("literal", "test")


def device(**changes):
    made = DeviceProfile(
        "toy", "gpu", {"float32": 1e13, "bfloat16": 1e13}, 8 * 10**9, 1e11, LITERAL
    )
    return replace(made, **changes)


@pytest.fixture(scope="module")
def generation():
    from executor.generation import capture_generation

    return capture_generation("zoo:gpt2", 1, "bfloat16", 64, 32)


def server_model(generation, **changes):
    cluster = Cluster("toy", {"gpu0": device(**changes)})
    return ServerModel(generation, cluster, {op.name: "gpu0" for op in generation.decode.ops})


def step_times():
    """1 ms a token, 10 ms a sequence; attention costs nothing."""
    line, axis = np.array([0.0, 4096.0]), np.array([0.0, 4096.0])
    grid = np.zeros((2, 2, 2, 2))
    return StepTimes(line, line * 1e-3, line, line * 1e-2, axis, axis, axis, axis, grid)


def plain_fleet(replicas=1, **rules):
    limits = ContinuousBatching(num_blocks=200, token_budget=512, max_sequences=8)
    return Fleet((Server(limits, step_times(), "toy"),) * replicas, **rules)


def poisson(num, rate, prompt=20, output=10):
    rng = np.random.default_rng(1)
    arrival_s = np.cumsum(rng.exponential(1 / rate, num))
    return Generations(arrival_s, np.full(num, prompt), np.full(num, output))


def test_fused_kernels_keep_work_weights_and_what_crosses(generation):
    graph = generation.decode
    coarse = fused(graph, dict.fromkeys(graph.by_name, 0))
    assert len(coarse.ops) < 0.6 * len(graph.ops)
    for key in ("flops", "param_bytes"):
        assert coarse.totals()[key] == pytest.approx(graph.totals()[key])
    assert coarse.totals()["bytes"] < graph.totals()["bytes"]
    assert coarse.outputs == graph.outputs


def test_products_of_one_input_become_one():
    ops = [
        make_op(
            name, [source], weights={f"w_{name}": 4}, dims={"batch": 1, "m": 1, "n": n, "k": 10}
        )
        for name, source, n in (("q", "x", 30), ("k", "x", 10), ("v", "x", 10), ("o", "t_q", 30))
    ]
    outputs = ("t_k", "t_v", "t_o")
    graph = Graph("qkv", tuple(ops), (Tensor("x", (1, 10), "float32"),), outputs)
    joined = fused(graph, dict.fromkeys(graph.by_name, 0))
    assert [(op.name, op.dims["n"]) for op in joined.ops] == [("q", 50), ("o", 30)]
    assert joined.ops[0].weights == {"w_q": 4, "w_k": 4, "w_v": 4}
    apart = fused(graph, {"q": 0, "k": 1, "v": 1, "o": 0})
    assert [op.dims["n"] for op in apart.ops] == [30, 20, 30]


def test_step_times_are_those_of_the_operators(generation):
    model = server_model(generation)
    times = model_step_times(model, 512, 64)
    label = dict.fromkeys(generation.decode.by_name, 0)
    whole = fused(generation.decode, label)
    past = generation.decode.by_name["cached_attention"].dims["keys"]
    alone_s = float(cost_table(whole, model.cluster).seconds.sum())
    assert times.step([], 1, past, past) == pytest.approx(alone_s, rel=0.02)
    head_s = 2 * 768 * 50257 / 1e11
    sixteen = times.step([], 16, 16 * past, past)
    assert sixteen < 2 * alone_s
    assert times.step([], 64, 64, 1) - times.step([(64, 0)], 0, 0, 0) < 64 * head_s
    assert times.step([(512, 0)], 0, 0, 0) > times.step([(64, 0)], 0, 0, 0)
    low, high = relative_band(model)
    assert low <= 1 <= high


def test_kv_room_is_the_memory_that_weights_and_a_full_step_leave(generation):
    model = server_model(generation)
    blocks = kv_blocks(model, 512, 16)
    block_bytes = 16 * 2 * 12 * 768 * 2
    weights = sum(generation.decode.weights().values())
    widest = (768 + 50257) * 2
    assert blocks == int((8e9 * 0.9 - weights - 512 * widest) / block_bytes)
    with pytest.raises(InfeasibleError, match="leave no room for keys and values"):
        kv_blocks(server_model(generation, memory_bytes=2 * 10**8), 512, 16)


def test_a_server_in_two_stages_pays_for_the_link_and_has_the_lesser_room(generation):
    names = list(generation.decode.by_name)
    half = names.index("cached_attention_6")
    placement = {n: "gpu0" if k < half else "gpu1" for k, n in enumerate(names)}
    link = Link("gpu0", "gpu1", 1e9, 1e-3, LITERAL)
    cluster = Cluster("two", {"gpu0": device(), "gpu1": device()}, (link,))
    split = model_step_times(ServerModel(generation, cluster, placement), 64, 8)
    alone = model_step_times(server_model(generation), 64, 8)
    assert split.step([], 1, 64, 64) > alone.step([], 1, 64, 64) + 1e-3


def test_what_holds_no_cache_goes_to_the_device_with_the_most(generation):
    graph = generation.decode
    placement = {op.name: "gpu0" if op.state_bytes else "cpu0" for op in graph.ops}
    assert set(with_cache_only(graph, placement).values()) == {"gpu0"}


def test_prefill_and_decode_apart_by_closed_form():
    requests = Generations(np.array([1.0]), np.array([100]), np.array([4]))
    transfer = Transfer(bytes_per_token=1e4, bytes_per_s=1e7, latency_s=0.5)
    for engine in ("simpy", "fast"):
        apart = Deployment(plain_fleet(), plain_fleet(), transfer)
        got = answer(requests, apart, 10.0, engine)
        first_s = 100e-3 + 10e-3
        assert got.first_token_s[0] == pytest.approx(1.0 + first_s)
        moved_s = 0.5 + 100 * 1e4 / 1e7
        assert got.last_token_s[0] == pytest.approx(1.0 + first_s + moved_s + 3 * 11e-3)
        assert got.counts["finished"] == 1


def test_a_prefill_server_sends_one_prompt_after_another():
    requests = Generations(np.array([0.0, 0.0]), np.array([100, 100]), np.array([2, 2]))
    transfer = Transfer(bytes_per_token=1e4, bytes_per_s=1e6, latency_s=0.0)
    got = answer(requests, Deployment(plain_fleet(), plain_fleet(), transfer), 10.0)
    both_s = 200e-3 + 2 * 10e-3
    np.testing.assert_allclose(got.last_token_s, both_s + np.array([1.0, 2.0]) + 11e-3)


@pytest.mark.parametrize("engine", ["simpy", "fast"])
def test_no_request_vanishes(engine):
    requests = poisson(400, 40.0)
    bounded = plain_fleet(2, routing="fastest", max_queue=4, timeout_s=0.2)
    apart = Deployment(plain_fleet(), bounded, Transfer(1e3, 1e8, 0.0))
    for deployment in (Deployment(bounded), apart):
        got = answer(requests, deployment, 8.0, engine)
        arrived = got.counts.pop("arrived")
        assert arrived == sum(got.counts.values())
    counts = answer(requests, Deployment(bounded), 8.0, engine).counts
    assert counts["rejected"] > 0
    assert counts["timed_out"] > 0


def test_a_load_above_capacity_grows_and_says_how_fast():
    requests = poisson(3000, 50.0)
    end_s = float(requests.arrival_s[-1])
    got = answer(requests, Deployment(plain_fleet()), end_s)
    answered = (got.last_token_s <= end_s).sum() / end_s
    assert queue_growth_per_s(got) == pytest.approx(50 - answered, rel=0.1)
    light = answer(poisson(3000, 3.0), Deployment(plain_fleet()), 1000.0)
    assert queue_growth_per_s(light) == 0.0


def test_the_promise_counts_all_that_is_promised():
    requests = poisson(200, 2.0)
    fleet = plain_fleet()
    run = answer(requests, Deployment(fleet), 1000.0)
    everything = measure_answers(run, (fleet,), Slo(p95_s=100.0, ttft_s=100.0, tpot_s=10.0))
    nothing = measure_answers(run, (fleet,), Slo(tpot_s=1e-6))
    assert everything.within == everything.counted
    assert nothing.within == nothing.good == 0
    assert everything.good == everything.counts["finished"]


def test_lengths_have_their_mean_and_bounds():
    drawn = draw_lengths(Lengths(200, 1.0, 2000), 20_000, np.random.default_rng(0))
    assert drawn.mean() == pytest.approx(200, rel=0.05)
    assert drawn.std() == pytest.approx(200, rel=0.15)
    assert drawn.min() >= 1
    assert drawn.max() <= 2000
    with pytest.raises(ValueError, match="mean must be at least 1"):
        Lengths(0.5)


def study_fleet(generation, **rules):
    limits = Continuous(token_budget=256, max_sequences=32)
    serving = Serving(replications=3, continuous=limits, **rules)
    kind = ServerKind("toy", server_model(generation), 1, 2.0)
    return GenerationFleet((kind,), serving)


def test_a_study_reports_times_cost_bottleneck_and_relief(generation):
    traffic = Traffic(rate=20.0, duration_s=20.0, slo=Slo(ttft_s=0.5))
    report = study_generations(study_fleet(generation), traffic, (64, 32))
    assert report.ttft_s.p50 <= report.latency_s.p50
    low, high = report.latency_interval_s["mean"]
    assert low <= report.latency_s.mean <= high
    assert report.usd_per_million_tokens == pytest.approx(2.0 / 3600 / report.tokens_per_s * 1e6)
    assert report.latency_band_s[0] <= report.latency_band_s[1]
    assert report.bottleneck.startswith("memory bandwidth")
    assert report.relief[0].latency_p95_s < report.latency_s.p95
    again = study_generations(study_fleet(generation), traffic, (64, 32))
    assert again == report


def test_both_engines_give_one_report(generation):
    traffic = Traffic(rate=30.0, duration_s=10.0)
    reports = [
        experiment_generations(study_fleet(generation, engine=engine), traffic, (64, 32))
        for engine in ("simpy", "fast")
    ]
    assert reports[0] == reports[1]


def test_runs_before_an_interrupted_one_are_kept(generation, monkeypatch):
    from simulator import generation_experiment as module

    drawn = []

    def unlucky(*args):
        drawn.append(args)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return draw(*args)

    monkeypatch.setattr(module, "draw", unlucky)
    report = study_generations(study_fleet(generation), Traffic(rate=5.0, duration_s=5.0), (64, 32))
    assert report.status == "partial"
    assert report.method.startswith("2 independent runs")
    assert report.relief == ()


def test_rules_of_other_servers_are_refused(generation):
    with pytest.raises(ValueError, match="routing shared_queue is not for generations"):
        study_fleet(generation, routing="shared_queue")
    with pytest.raises(ValueError, match="predicted_s is not for generations"):
        study_fleet(generation, limits=Limits(predicted_s=1.0))


SCENARIO = """
model: {source: zoo:gpt2, dtype: bfloat16, mode: generation, prompt_tokens: 64, new_tokens: 16}
hardware: {instances: [aws/g6.xlarge]}
objective: latency
traffic:
  rate: 5
  duration_s: 20
  prompt_tokens: {mean: 60, cv: 0.5, max: 200}
  slo: {ttft_s: 0.5, tpot_s: 0.1}
serving: {routing: fastest, replications: 2, continuous: {token_budget: 256, max_sequences: 64}}
fleet: [{hardware: {instances: [aws/g5.xlarge]}}]
prefill: {hardware: {instances: [aws/g6e.xlarge]}, network: ethernet-10g}
"""


def test_simulate_serves_generations_on_unlike_servers(tmp_path, capsys):
    path = tmp_path / "chat.yaml"
    path.write_text(SCENARIO)
    assert main(["simulate", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    serving = document["serving"]
    assert document["ttft_s"]["p95"] == serving["ttft_s"]["p95"]
    assert document["requests"]["arrived"] == sum(
        v for k, v in document["requests"].items() if k != "arrived"
    )
    kinds = {(kind["name"], kind["role"]) for kind in serving["kinds"]}
    assert kinds == {
        ("aws/g6e.xlarge", "prefill"), ("aws/g6.xlarge", "decode"), ("aws/g5.xlarge", "decode"),
    }  # fmt: skip
    assert document["cost"]["usd_per_hour"] == pytest.approx(
        sum(kind["usd_per_hour"] for kind in serving["kinds"])
    )
    assert "in us-east-1 as of 20" in document["cost"]["provenance"]


def test_traffic_is_served_from_measured_layers(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "layers").mkdir()
    write_layers(tmp_path / "layers")
    text = SCENARIO.split("fleet:")[0]
    path = tmp_path / "chat.yaml"
    path.write_text(text + "layer_times: {folder: layers, num_layers: 3, step_s: 0.001}\n")
    assert main(["simulate", str(path), "--json"]) == 0
    serving = json.loads(capsys.readouterr().out)["serving"]
    (kind,) = serving["kinds"]
    assert kind["provenance"] == "measured layers in layers"
    # Alone, a step takes 26 us for its token, 10 us for its sequence, 48 us at 16 of context.
    assert 0.001 < serving["tpot_s"]["p50"] < 0.0015
    assert serving["tpot_band_s"][1] == pytest.approx(1.25 * serving["tpot_s"]["mean"], rel=0.05)
    assert not any("compute" in row["change"] for row in serving["relief"])
    for old, new, message in (
        ("num_layers: 3", "num_layers: 0", "layer_times: num_layers must be at least 1, got 0"),
        ("folder: layers", "folder: none", "dense.csv: no such file"),
        ("num_layers: 3", "num_layers: 3, padded_tokens: [8, 4]", "padded_tokens must rise"),
    ):
        broken = tmp_path / "broken.yaml"
        broken.write_text(path.read_text().replace(old, new))
        assert main(["simulate", str(broken)]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_servers_of_generations_fail_scale_and_are_billed(tmp_path, capsys):
    text = SCENARIO.split("prefill:")[0].replace(
        "serving: {",
        "serving: {failures: {mtbf_s: 20, mttr_s: 5}, boot: {seconds: 2}, "
        "autoscaling: {max: 4, min: 1, interval_s: 2, cooldown_s: 5}, ",
    )
    path = tmp_path / "chat.yaml"
    path.write_text(text)
    assert main(["simulate", str(path), "--json"]) == 0
    serving = json.loads(capsys.readouterr().out)["serving"]
    assert serving["upkeep"]["failed"] > 0
    assert serving["upkeep"]["machines"] > 2
    assert serving["bill"]["total_usd"] == pytest.approx(serving["usd_per_hour"] * 20 / 3600)
    counts = serving["requests"]
    assert counts["arrived"] == sum(v for k, v in counts.items() if k != "arrived")
    path.write_text(text + "prefill: {hardware: {instances: [aws/g6e.xlarge]}}\n")
    assert main(["simulate", str(path)]) == 2
    assert "compute prompts apart are always up" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("token_budget: 256", "token_budgets: 256", "did you mean 'token_budget'"),
        ("max_sequences: 64", "max_sequences: 512", "must not exceed token_budget"),
        ("rate: 5", "trace: none.csv", "none.csv: no such file"),
        ("mode: generation, prompt_tokens: 64, new_tokens: 16", "batch: 1", "prefill needs model"),
    ],
)
def test_bad_scenarios_are_one_clear_error(tmp_path, capsys, old, new, message):
    path = tmp_path / "chat.yaml"
    path.write_text(SCENARIO.replace(old, new))
    assert main(["simulate", str(path)]) == 2
    assert message in capsys.readouterr().err


def sized_server(generation):
    limits = ContinuousBatching(num_blocks=2000, token_budget=64, max_sequences=32)
    return Server(limits, model_step_times(server_model(generation), 64, 32), "toy")


def test_a_request_alone_is_what_the_engine_gives(generation):
    server, rng = sized_server(generation), np.random.default_rng(0)
    apart = Generations(np.arange(8) * 1e3, rng.integers(1, 200, 8), rng.integers(1, 50, 8))
    met = alone(server, apart)
    got = answer(apart, Deployment(Fleet((server,))), 1e9, "simpy")
    assert met.ttft_s == pytest.approx(got.first_token_s - apart.arrival_s, rel=1e-6)
    assert met.latency_s == pytest.approx(got.last_token_s - apart.arrival_s, rel=1e-6)


@pytest.mark.parametrize(("prompt", "output"), [(60, 30), (5, 80), (300, 1)])
def test_no_full_server_answers_faster_than_the_bound(generation, prompt, output):
    server = sized_server(generation)
    at_once = Generations(np.zeros(300), np.full(300, prompt), np.full(300, output))
    got = answer(at_once, Deployment(Fleet((server,))), 1e9, "simpy")
    each_s = got.last_token_s.max() / 300
    assert 0.2 * each_s < least_server_s(server, prompt, output) <= each_s * (1 + 1e-9)


def test_the_smallest_fleet_keeps_the_promise_and_one_server_less_does_not(generation):
    kind = ServerKind("toy", server_model(generation), 1)
    rules = Serving(engine="simpy", replications=1, continuous=Continuous(max_sequences=8))
    traffic = Traffic(rate=150, duration_s=8.0, slo=Slo(ttft_s=0.05, tpot_s=0.02, share=0.9))
    load = load_of(traffic, rules, (64, 32))
    candidate = GenerationCandidate("toy", kind, 6.0, "literal", per_instance=4)
    (fleet,) = size_generations([candidate], load, lambda share: None)
    assert 1 <= fleet.lower_bound_replicas <= fleet.replicas
    assert fleet.replicas > 1
    assert fleet.instances == -(-fleet.replicas // 4)
    assert fleet.usd_per_hour == 6.0 * fleet.instances >= fleet.lower_bound_usd_per_hour
    assert fleet.report.promise.kept
    less = GenerationFleet((replace(kind, replicas=fleet.replicas - 1),), rules)
    assert not experiment_generations(less, traffic, (64, 32)).promise.kept


def test_an_impossible_promise_names_the_best_that_can_be_had(tmp_path):
    @contextmanager
    def silent(step):
        yield lambda share: None

    path = tmp_path / "size.yaml"
    path.write_text(
        "model: {source: zoo:gpt2, dtype: bfloat16, mode: generation, prompt_tokens: 64,"
        " new_tokens: 16}\nhardware: {instances: [aws/g6.xlarge]}\n"
        "traffic: {rate: 5, slo: {ttft_s: 1.0e-4, p99_s: 9}}\n"
    )
    fleets = size(read_scenario(path), silent, ["aws/g6.xlarge"])
    assert [(fleet.replicas, fleet.excess > 1) for fleet in fleets] == [(None, True)]
    assert "the best is aws/g6.xlarge" in why_none(fleets)
    assert "0.99 of them have first token within" in why_none(fleets)


def test_compare_serves_the_traffic_of_every_variation(tmp_path, capsys):
    path = tmp_path / "chat.yaml"
    path.write_text(SCENARIO.partition("fleet:")[0])
    assert main(["compare", str(path), "--vary", "traffic.rate=1,9", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    served = {row["changes"]["traffic.rate"]: row["serving"] for row in rows}
    assert served[1]["tpot_s"]["mean"] < served[9]["tpot_s"]["mean"]
    assert served[1]["usd_per_1k"] > served[9]["usd_per_1k"]


def test_fleets_of_several_kinds_are_not_sized(tmp_path, capsys):
    path = tmp_path / "chat.yaml"
    path.write_text(SCENARIO)
    assert main(["size", str(path)]) == 2
    assert "leave out prefill" in capsys.readouterr().err
