import math
from itertools import permutations

import pytest
from conftest import LITERAL, make_cluster, make_profile

from hardware.catalog import (
    find_instance,
    find_profile,
    instance_cluster,
    load_instances,
    load_prices,
)
from hardware.cluster import Cluster, Link
from hardware.documents import parse, read, write_text
from hardware.prices import Price
from hardware.profile import DeviceProfile
from hardware.units import format_bytes, format_count, format_seconds, format_usd

UNPRICED = {
    "aws/p5e.48xlarge",
    "aws/trn2.3xlarge",
    "aws/trn2.48xlarge",
    "gcp/a3-highgpu-8g",
    "gcp/a4-highgpu-8g",
}


@pytest.mark.parametrize("name", load_instances())
def test_every_instance_has_a_price_and_links_for_every_pair(name):
    cluster = instance_cluster(find_instance(name))
    for src, dst in permutations(cluster.devices, 2):
        assert cluster.link(src, dst).bytes_per_s > 1e9
    assert {p.instance for p in load_prices().prices} == set(load_instances()) - UNPRICED
    assert all(profile.provenance.source for profile in cluster.devices.values())


def test_host_cores_scale_with_their_number():
    core = find_profile("EPYC-9R14-core")
    host = instance_cluster(find_instance("aws/c7a.xlarge")).devices["cpu0"]
    assert host.peak_flops_per_s["float32"] == 4 * core.peak_flops_per_s["float32"]
    assert host.memory_bytes == 8 * 2**30
    assert host.num_compute_units == 4


def test_gpus_without_nvlink_share_the_host_link():
    cluster = instance_cluster(find_instance("aws/g4dn.12xlarge"))
    assert cluster.link("gpu0", "gpu1").shared_medium == cluster.link("gpu2", "gpu3").shared_medium
    nvlink = instance_cluster(find_instance("aws/p4d.24xlarge"))
    assert nvlink.link("gpu0", "gpu1").shared_medium != nvlink.link("gpu2", "gpu3").shared_medium


@pytest.mark.parametrize(
    ("find", "name", "nearest"),
    [(find_instance, "aws/g6.xlarg", "aws/g6.xlarge"), (find_profile, "L4O", "L4")],
)
def test_unknown_names_suggest_the_nearest(find, name, nearest):
    with pytest.raises(ValueError, match=rf"unknown \w+ '{name}'; did you mean '{nearest}'"):
        find(name)


def test_missing_price_says_what_there_is():
    with pytest.raises(
        ValueError, match=r"no price for 'aws/g5.xlarge' reserved.*on_demand in us-east-1"
    ):
        load_prices().find("aws/g5.xlarge", "reserved")


def test_prices_taken_after_the_asked_date_do_not_count():
    assert load_prices().find("aws/g5.xlarge", as_of="2026-07-20").usd_per_hour == 1.006
    with pytest.raises(
        ValueError, match="on_demand by 2026-07-19; there is: on_demand in us-east-1"
    ):
        load_prices().find("aws/g5.xlarge", as_of="2026-07-19")


def test_price_must_be_positive():
    with pytest.raises(ValueError, match="usd_per_hour must be positive, got 0"):
        Price("a/b", "spot", "r", 0, "2026-01-01", "test")


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_profile_refuses_impossible_memory_bandwidth(value):
    with pytest.raises(ValueError, match="device 'd': memory_bytes_per_s must be positive"):
        make_profile("d", memory_bytes_per_s=value)


@pytest.mark.parametrize("key", ["num_compute_units", "cache_bytes", "clock_hz", "power_w"])
def test_optional_figures_may_be_absent_but_not_impossible(key):
    assert getattr(make_profile("d"), key) is None
    with pytest.raises(ValueError, match=f"device 'd': {key} must be positive, got 0"):
        make_profile("d", **{key: 0})


def test_unsupported_dtype_is_said():
    with pytest.raises(
        ValueError, match="device 'd' has no figure for dtype float16; it has: float32"
    ):
        make_profile("d").flops_per_s("float16")


def test_missing_link_is_an_error():
    cluster = Cluster("c", {"a": make_profile(), "b": make_profile()})
    with pytest.raises(ValueError, match="no link between 'a' and 'b'; add one to the cluster"):
        cluster.link("a", "b")


def test_link_to_an_unknown_device_is_refused():
    with pytest.raises(ValueError, match="no device 'z'; devices: a"):
        Cluster("c", {"a": make_profile()}, (Link("a", "z", 1e9, 0, LITERAL),))


def test_link_time_is_latency_plus_bytes_over_bandwidth():
    assert make_cluster(bytes_per_s=1e6, latency_s=0.5).link("a", "b").seconds(2e6) == 2.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: d\nkind: gpux", "kind"),
        ("[1, 2]", "document"),
        ("", "document"),
        ("a: [", "not YAML"),
    ],
)
def test_documents_name_the_file_and_the_key(tmp_path, text, message):
    path = tmp_path / "device.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"device\.yaml.*{message}"):
        read(path, DeviceProfile)


def test_unknown_key_names_the_nearest():
    raw = {
        "instance": "a",
        "market": "spot",
        "region": "r",
        "usd_per_hours": 1,
        "as_of": "",
        "source": "",
    }
    with pytest.raises(
        ValueError, match="unknown key 'usd_per_hours'; did you mean 'usd_per_hour'"
    ):
        parse(raw, Price, "here")


def test_nan_in_a_file_is_refused():
    raw = {
        "instance": "a",
        "market": "spot",
        "region": "r",
        "usd_per_hour": math.nan,
        "as_of": "",
        "source": "",
    }
    with pytest.raises(ValueError, match=r"usd_per_hour.*got nan"):
        parse(raw, Price, "here")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_units_for_people():
    assert format_count(8.18e9, "FLOP") == "8.18 GFLOP"
    assert format_bytes(2**30) == "1.00 GiB"
    assert [format_seconds(s) for s in (0, 2e-6, 0.0123, 3, 600)] == [
        "0 s",
        "2 µs",
        "12.3 ms",
        "3 s",
        "10 min",
    ]
    assert format_usd(0.000301) == "$0.000301"
