"""What a fleet costs: by hand."""

import math

import numpy as np
import pytest

from hardware.catalog import find_instance, instance_cluster
from hardware.clouds import load_clouds
from hardware.power import Power, idle_share, machine_power
from simulator.arrivals import Traffic, draw
from simulator.billing import Bill, Item, bill, billed_s, charges, hours_beyond
from simulator.renting import Conditions, operate
from simulator.run_figures import measure
from simulator.serve import serve
from simulator.served import Rental
from simulator.serving import Batching, Replica, ServiceTimes, Serving
from simulator.serving_report import summarize
from simulator.spot import Recorded
from simulator.tariff import Tariff

AWS, GCP = load_clouds()["aws"], load_clouds()["gcp"]
TIMES = ServiceTimes((1,), (1.0,), (1.0,))
ONE_BY_ONE = Serving(batch=Batching(1, 0))


def rental(seconds, ended_by="given_back", booked_s=0.0, up_s=0.0):
    return Rental(Replica("r", TIMES), "", booked_s, up_s, booked_s + seconds, ended_by)


def run(tariff, num_replicas, duration_s, conditions=None, rate=0.5):
    rng = np.random.default_rng(0)
    replicas = [Replica("r", TIMES, 3.0, tariff=tariff)] * num_replicas
    requests = draw(Traffic(rate=rate, arrivals="deterministic", duration_s=duration_s), rng)
    actors = (operate({"r": conditions}),) if conditions else ()
    return serve(replicas, requests, ONE_BY_ONE, rng, actors)


@pytest.mark.parametrize(
    ("seconds", "ended_by", "cloud", "charged"),
    [
        (10.2, "given_back", AWS, 60),
        (60.2, "given_back", AWS, 61),
        (3600.0, "failed", AWS, 3600),
        (10.2, "kept", AWS, 10.2),
        (3599.0, "preempted", AWS, 0),
        (3600.5, "preempted", AWS, 3601),
        (100.1, "preempted", GCP, 101),
        (10.0, "preempted", GCP, 60),
        (10.2, "given_back", None, 10.2),
    ],
)
def test_rentals_are_rounded_up_and_early_preemption_is_free_at_aws(
    seconds, ended_by, cloud, charged
):
    assert billed_s(rental(seconds, ended_by), cloud) == charged


def test_an_hourly_cloud_charges_hours():
    hourly = type(AWS)(**{**vars(AWS), "granularity_s": 3600, "minimum_s": 3600})
    assert billed_s(rental(3601), hourly) == 7200
    assert billed_s(rental(1), hourly) == 3600


def test_the_bill_of_a_fleet_that_just_stays():
    """Two machines for an hour at USD 3; 1,799 requests of a second, 100 W idle and 300 W busy."""
    tariff = Tariff(
        "on_demand", {"on_demand": 3.0}, AWS, Power(100, 300), 1.2, 500.0, 0.1, 1e6, 2e6
    )
    served = run(tariff, 2, 3600)
    paid = bill([charges(served)], 3600, served.requests["finished"])
    lines = {item.name: item for item in paid.items}
    assert lines["on demand, serving"] == Item("r", "on demand, serving", 2.0, "h", 6.0)
    kwh = 1.2 * (100 * 7200 + 200 * 1799) / 3.6e6
    assert lines["energy"].quantity == pytest.approx(kwh)
    assert lines["energy"].usd == pytest.approx(0.1 * kwh)
    assert paid.carbon_kg == pytest.approx(kwh * 0.5)
    assert served.requests["finished"] == 1799
    assert lines["bytes between zones"].usd == pytest.approx(1799 * 2e6 * 2e-11)
    # 1.799 GB in an hour is 1,313 GB a month, of which 100 are free
    assert lines["bytes to the internet"].usd == pytest.approx((1.799e9 * 730 - 1e11) * 9e-11 / 730)
    assert paid.total_usd == math.fsum(item.usd for item in paid.items)
    assert paid.cost.usd_per_hour == pytest.approx(paid.total_usd)
    assert paid.cost.usd_per_1k == pytest.approx(paid.total_usd / 1.799)


def test_spot_and_on_demand_machines_have_their_own_lines():
    """Of two machines the second is spot, and gone from 4000 s to 5000 s."""
    trace = Recorded(np.array([0.0, 4000.0, 5000.0]), np.array([1, 0, 1]))
    tariff = Tariff("spot", {"spot": 1.0, "on_demand": 4.0}, AWS)
    served = run(tariff, 2, 7200, Conditions(spot=trace, on_demand=1))
    lines = {item.name: item for item in charges(served)}
    assert lines["on demand, serving"].usd == 8.0
    assert lines["spot, serving"].quantity == pytest.approx((4000 + 2200) / 3600)
    free = run(
        tariff, 1, 7200, Conditions(spot=Recorded(np.array([0.0, 3000.0]), np.array([1, 0])))
    )
    assert sum(item.usd for item in charges(free)) == pytest.approx(0.0)
    with pytest.raises(ValueError, match="no on_demand price of 'r'"):
        charges(
            run(Tariff("spot", {"spot": 1.0}, AWS), 2, 100, Conditions(spot=trace, on_demand=1))
        )


def test_reserved_machines_are_paid_whether_they_run_or_not():
    tariff = Tariff("reserved", {"reserved": 1.0, "on_demand": 3.0}, AWS)
    rentals = [
        rental(1800),
        rental(3600, "kept"),
        rental(600, booked_s=1000, up_s=1000),
    ]
    assert hours_beyond(rentals, 2) == 600
    assert hours_beyond(rentals, 3) == 0
    served = run(tariff, 2, 3600)
    assert [(item.kind, item.name, item.usd) for item in charges(served)] == [
        ("r", "reserved", 2.0)
    ]


def test_a_report_carries_the_mean_bill_and_what_it_rests_on():
    tariff = Tariff("on_demand", {"on_demand": 3.0}, provenance="a price")
    runs = [measure(run(tariff, n, 3600), None) for n in (1, 3)]
    report = summarize(runs, [Replica("r", TIMES, 3.0, tariff=tariff)], None)
    assert report.bill.total_usd == pytest.approx(6.0)
    assert report.usd_per_hour == pytest.approx(6.0)
    assert report.upkeep.machines == 2
    assert "a price" in report.bill.notes
    assert any("power of the machine is not known" in note for note in report.bill.notes)
    assert report.bill.energy_kwh is None
    with pytest.raises(AssertionError, match=r"a bill of 2.0 whose items sum to 1.0"):
        Bill((Item("", "one", 1.0, "h", 1.0),), 2.0, 3600, 0)


def test_power_of_a_machine_is_that_of_its_devices():
    cluster = instance_cluster(find_instance("aws/g4dn.xlarge"))
    power = machine_power(cluster.devices, {"gpu0": 0.5})
    assert power.idle_w == pytest.approx(8 + 2 * 1.41)
    assert power.busy_w == pytest.approx(8 + 31 + 2 * 1.41)
    assumed = machine_power(instance_cluster(find_instance("aws/g6.xlarge")).devices, {})
    assert "idle power of L4 taken as 12% of its full: median of" in assumed.notes[0]
    tpu = machine_power(instance_cluster(find_instance("gcp/ct5lp-hightpu-1t")).devices, {})
    assert tpu == "the power of TPU-v5e (tpu0) is not known"
    assert 0.05 < idle_share("gpu")[0] < 0.2
    assert idle_share("tpu")[1].endswith("of any kind")
