"""What a scenario says of its machines: boot, failures, spot, autoscaling, and the bill."""

import json
from pathlib import Path

import pytest

from simulator.spot import Renewal
from ui import cli, exits
from ui.renting import comes_and_goes, conditions_of, tariff_of
from ui.scenario import parse_scenario, read_scenario

ROOT = Path(__file__).parent.parent


def scenario(**keys):
    raw = {
        "model": {"source": "zoo:resnet50"},
        "hardware": {"instances": ["aws/g4dn.xlarge"]},
        **keys,
    }
    return parse_scenario(raw, "test", "test")


SPOT = {"prices": {"market": "spot", "region": "us-east-1"}}


def test_a_spot_scenario_takes_rate_notice_boot_and_price_from_the_catalog():
    found = scenario(**SPOT)
    conditions = conditions_of(found, 6.27e9)
    assert comes_and_goes(found)
    assert conditions.notice_s == 120
    assert conditions.spot.mean_down_s == 0
    assert conditions.start_up.load_s == pytest.approx(6.27e9 / (5e9 / 8), rel=0.5)
    assert "boot times of 70 machines of aws" in conditions.notes[0]
    assert "a month in us-east-1" in conditions.notes[1]
    tariff = tariff_of(found)
    assert tariff.usd_per_hour["spot"] < 0.6 * tariff.usd_per_hour["on_demand"]
    assert tariff.pue == 1.15
    assert tariff.g_per_kwh == 415.755


def test_several_instances_are_taken_back_as_often_as_all_of_them():
    one = conditions_of(scenario(**SPOT), 0).spot
    both = {"instances": ["aws/g4dn.xlarge", "aws/g4dn.xlarge"]}
    two = conditions_of(scenario(**SPOT, hardware=both), 0).spot
    assert two == Renewal(one.mean_up_s / 2, 0.0)


def test_a_pool_and_given_times_stand_in_for_the_market():
    pool = {"pool": "aws-us-west-2a-v100x8-2022-10-26", "notice_s": 0, "on_demand": 2}
    conditions = conditions_of(scenario(**SPOT, serving={"replicas": 3, "spot": pool}), 0)
    assert (conditions.spot, conditions.notice_s) == (Renewal(4169, 4502), 0)
    assert conditions.on_demand == 2
    given = {"spot": {"mean_up_s": 100, "mean_down_s": 7}}
    assert conditions_of(scenario(**SPOT, serving=given), 0).spot == Renewal(100, 7)


def test_what_is_not_known_is_said():
    google = {"hardware": {"instances": ["gcp/g2-standard-4"]}, "prices": {"market": "spot"}}
    conditions = conditions_of(scenario(**google), 0)
    assert conditions.spot is None
    assert "never taken back: no spot interruption rate" in conditions.notes[1]
    with pytest.raises(ValueError, match="no spot interruption rate"):
        conditions_of(scenario(**google, serving={"spot": {}}), 0)
    with pytest.raises(ValueError, match=r"needs prices\.market: spot, got on_demand"):
        conditions_of(scenario(serving={"spot": {}}), 0)
    with pytest.raises(ValueError, match=r"no price for .* on_demand in nowhere"):
        tariff_of(scenario(prices={"region": "nowhere"}))
    given = {"region": "nowhere", "usd_per_hour": 1.0}
    unknown = tariff_of(scenario(prices=given))
    assert unknown.g_per_kwh == ("the grid of aws nowhere is not known; prices.g_per_kwh tells it")
    assert tariff_of(scenario(prices={**given, "g_per_kwh": 20})).g_per_kwh == 20


@pytest.mark.parametrize(
    ("serving", "message"),
    [
        ({"autoscaling": {"max": 1, "min": 2}}, "max must be at least min"),
        ({"replicas": 5, "autoscaling": {"max": 4}}, r"replicas must be from autoscaling\.min"),
        ({"failures": {"mtbf_s": -1, "mttr_s": 1}}, "mtbf_s must be positive, got -1"),
        ({"failures": {"mtbf": 1, "mttr_s": 1}}, "unknown key .*mtbf.*; did you mean 'mtbf_s'"),
        ({"autoscaling": {"max": 4, "policy": "cpu"}}, "utilization"),
        ({"limits": {"retries": -1}}, "retries must not be negative"),
        ({"boot": {"cloud": "asw"}}, "did you mean 'aws'"),
    ],
)
def test_bad_keys_are_one_clear_error(serving, message):
    with pytest.raises(ValueError, match=message):
        scenario(serving=serving)


@pytest.mark.parametrize("prices", [{"internet_bytes": -1}, {"pue": 0.5}, {"usd_per_hour": 0}])
def test_impossible_prices_are_refused(prices):
    with pytest.raises(ValueError, match="prices"):
        scenario(prices=prices)


def test_a_fleet_that_fails_and_scales_reports_its_machines_and_a_bill_that_sums(tmp_path, capsys):
    path = tmp_path / "fleet.yaml"
    path.write_text(
        "model: {source: 'service:exponential', mean_s: 1}\n"
        "traffic: {rate: 2, duration_s: 600, slo: {p95_s: 8}}\n"
        "serving: {replicas: 3, replications: 2, failures: {mtbf_s: 200, mttr_s: 30},\n"
        "  boot: {seconds: 20}, autoscaling: {max: 6}}\n"
        "prices: {usd_per_hour: 1.0}\n"
    )
    documents = []
    for _ in range(2):
        assert cli.main(["simulate", str(path), "--json"]) == exits.DONE
        documents.append(json.loads(capsys.readouterr().out))
    assert documents[0] == documents[1]
    serving, cost = documents[0]["serving"], documents[0]["cost"]
    counts = dict(serving["requests"])
    assert counts.pop("arrived") == sum(counts.values())
    assert serving["upkeep"]["failed"] > 2
    assert serving["upkeep"]["boot_s"]["p50"] == pytest.approx(20)
    bill = serving["bill"]
    assert bill["total_usd"] == pytest.approx(sum(item["usd"] for item in bill["items"]))
    assert {item["name"] for item in bill["items"]} == {"on demand, serving", "on demand, booting"}
    assert cost["usd_per_hour"] == pytest.approx(bill["total_usd"] * 6)
    assert cost["usd_per_1k"] == pytest.approx(bill["total_usd"] / bill["finished"] * 1000)
    rented, up = serving["series"]["machines_rented"], serving["series"]["servers_up"]
    assert sum(rented) > sum(up)


def test_the_example_says_what_the_report_needs():
    found = read_scenario(ROOT / "examples" / "spot-fleet.yaml")
    assert comes_and_goes(found)
    assert found.serving.autoscaling.max >= found.serving.replicas
    assert conditions_of(found, 3e9).on_demand == 1
