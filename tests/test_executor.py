import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from executor import cache, run, whole
from executor.calibrate import to_link, to_profile
from executor.capture import capture, to_graph
from executor.devices import local_devices, machine_key
from executor.export import export
from executor.loaded import LoadedModel, load_model, most_micro_batches
from executor.measure import LINK_SIZES_BYTES, DeviceFigures
from executor.run import execute
from executor.run_folder import claim_folder, release_folder
from executor.sources import Model, build_model
from executor.split import cut
from executor.whole import op_times, run_whole_in
from executor.workers import WorkerError, Workers
from hardware.cluster import Cluster
from scheduler.cost_model.costs import cost_table
from scheduler.evaluation.evaluate import finish_plan
from scheduler.problem import Problem

PARAMS = {"cifar10-cnn": 122_570, "resnet50": 25_557_032, "gpt2": 124_439_808}
GFLOPS = {"cifar10-cnn": 0.00918, "resnet50": 8.18, "gpt2": 32.2}


def quiet(share):
    pass


@pytest.mark.parametrize("name", PARAMS)
def test_zoo_captures_with_the_published_parameters_and_flops(name):
    graph = capture(f"zoo:{name}", 1)
    assert graph.num_params == PARAMS[name]
    assert graph.totals()["flops"] / 1e9 == pytest.approx(GFLOPS[name], rel=0.01)
    assert graph.uncosted_ops == []
    assert max(graph.weights().values()) > 0


def test_flops_of_matmul_kinds_equal_the_flop_counter():
    from torch.utils.flop_counter import FlopCounterMode

    model = build_model("zoo:resnet50", 2, "float32", "cpu")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.module(*model.inputs)
    graph = to_graph(export(model), "r", 2)
    ours = sum(op.flops for op in graph.ops if op.kind in ("matmul", "conv"))
    assert ours == counter.get_total_flops()


@pytest.mark.parametrize(("groups", "stride", "dilation"), [(1, 1, 1), (4, 2, 1), (2, 1, 2)])
def test_convolution_flops(groups, stride, dilation):
    conv = nn.Conv2d(8, 16, 3, stride, 0, dilation, groups)
    model = Model("c", conv.eval(), (torch.randn(2, 8, 12, 12),))
    out = conv(*model.inputs)
    op = to_graph(export(model), "c", 2).ops[0]
    assert op.flops == 2 * out.numel() * 8 // groups * 9
    assert op.param_bytes == 4 * sum(p.numel() for p in conv.parameters())


def test_capture_allocates_no_weights():
    model = build_model("zoo:gpt2", 1, "float32", "meta")
    assert all(p.is_meta for p in model.module.parameters())


def test_tied_weights_count_once_and_views_are_free():
    graph = capture("zoo:gpt2", 1)
    assert graph.totals()["param_bytes"] == 4 * PARAMS["gpt2"]
    views = [op for op in graph.ops if op.kind == "view"]
    assert views
    assert all(op.flops == op.bytes_read == op.bytes_written == 0 for op in views)


def test_halving_the_precision_halves_the_parameters():
    half, full = (capture("zoo:cifar10-cnn", 1, d) for d in ("bfloat16", "float32"))
    assert 2 * half.totals()["param_bytes"] == full.totals()["param_bytes"]
    assert {op.dtype for op in half.ops if op.kind == "conv"} == {"bfloat16"}


class Branches(nn.Module):
    """In-place work, several outputs of one operator, constants made inside, a dictionary out."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)
        self.register_buffer("scale", torch.full((8,), 2.0))

    def forward(self, x):
        a, b = self.left(x).chunk(2, dim=1)
        steps = torch.arange(4, device=x.device, dtype=x.dtype)
        a = (2 * a).add_(steps).relu_()
        y = self.right(torch.cat([a, b], dim=1)) * self.scale
        return {"y": y, "sum": (y.sum(1) + x.mean(1))}


@pytest.mark.parametrize("seed", range(4))
def test_any_cut_gives_the_unsplit_output_bit_for_bit(seed):
    torch.manual_seed(0)
    model = Model("b", Branches().eval(), (torch.randn(4, 8),))
    program = export(model)
    names = [op.name for op in to_graph(program, "b", 4).ops]
    generator = torch.Generator().manual_seed(seed)
    level = sorted(torch.randint(0, 4, (len(names),), generator=generator).tolist())
    groups = [[n for n, g in zip(names, level, strict=True) if g == i] for i in range(4)]
    tensors = dict(zip(program.inputs, model.inputs, strict=True))
    for stage in cut(program, [group for group in groups if group]):
        results = stage.build("cpu")(*(tensors[n] for n in stage.inputs))
        tensors |= dict(zip(stage.outputs, results, strict=True))
    with torch.no_grad():
        expected = model.module(*model.inputs)
    leaves = [n.name for n in program.graph.output_node().args[0]]
    for name, value in zip(leaves, expected.values(), strict=True):
        assert torch.equal(tensors[name], value)


BAD = """
import torch
from torch import nn

class Picky(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x + 1
        return x

def picky(batch):
    return Picky(), (torch.randn(batch, 4),)

def broken(batch):
    return 1 / 0

def wrong(batch):
    return Picky()
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "user_models.py").write_text(BAD)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "user_models.py"
    sys.modules.pop("user_models", None)


def test_a_model_that_cannot_be_captured_names_the_users_line(user_module):
    with pytest.raises(
        ValueError, match=r"picky' cannot be captured at .*user_models\.py:7: if x\.sum\(\) > 0:"
    ):
        capture("python:user_models:picky", 1)


def test_a_factory_that_fails_names_its_line(user_module):
    with pytest.raises(
        ValueError, match=r"the factory failed at .*user_models\.py:15: return 1 / 0"
    ):
        capture("python:user_models:broken", 1)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("zoo:resnet5", "unknown model 'zoo:resnet5'; did you mean 'resnet50'"),
        ("resnet50", "is not zoo:NAME, python:MODULE:FACTORY"),
        ("python:no_such_module:f", "module 'no_such_module' cannot be imported"),
        ("python:user_models:pickyy", "has no 'pickyy'; did you mean 'picky'"),
        ("python:user_models:wrong", r"must return \(torch.nn.Module, tuple of tensors\)"),
    ],
)
def test_unknown_sources(user_module, source, message):
    with pytest.raises(ValueError, match=message):
        capture(source, 1)


def test_batch_and_dtype_are_checked():
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        capture("zoo:cifar10-cnn", 0)
    with pytest.raises(ValueError, match="unknown dtype 'float31'; did you mean 'float32'"):
        capture("zoo:cifar10-cnn", 1, "float31")


def test_micro_batches_divide_the_batch_and_keep_work_in_each():
    assert most_micro_batches("zoo:resnet50", 6, "float32") == 3
    assert most_micro_batches("zoo:resnet50", 1, "float32") == 1
    assert most_micro_batches("zoo:cifar10-cnn", 8, "float32") == 1


def test_slices_are_disjoint_and_cover_the_cores():
    slices = [d for d in local_devices() if d.kind == "cpu"]
    cores = [core for device in slices for core in device.cores]
    assert sorted(cores) == sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        assert len(slices[0].cores) == max(1, len(cores) // 4)


def test_profile_words_rates_as_peaks_and_shares():
    device = local_devices()[-1]
    figures = DeviceFigures(
        {("matmul", "float32"): 100.0, ("conv", "float32"): 50.0}, {"copy": 8.0, "pool": 2.0}, 1e-6
    )
    from conftest import LITERAL

    profile = to_profile(device, figures, LITERAL)
    assert profile.peak_flops_per_s == {"float32": 100.0}
    assert profile.efficiency["conv"] == 0.5
    assert profile.efficiency["pool"] == 0.25


def test_link_fit_recovers_latency_and_bandwidth():
    from conftest import LITERAL

    times = [1e-4 + (size - LINK_SIZES_BYTES[0]) / 1e9 for size in LINK_SIZES_BYTES]
    link = to_link("a", "b", times, LITERAL)
    assert (link.latency_s, link.bytes_per_s) == (1e-4, pytest.approx(1e9))


def test_a_corrupt_cache_file_is_not_trusted():
    path = cache.cache_folder() / f"{machine_key()}-profile.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"name": "local", "devices": {}')
    assert cache.load("profile", Cluster) is None
    path.unlink()


def double(context, value):
    return context.device.name, 2 * value


def fail(context):
    raise ValueError("bad luck")


def die(context):
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(context, seconds):
    time.sleep(seconds)


def test_workers_answer_fail_and_die():
    devices = local_devices()
    name = devices[0].name
    with Workers(devices) as workers:
        results = workers.call_all(double, {d.name: (21,) for d in devices})
        assert results == {d.name: (d.name, 42) for d in devices}
        with pytest.raises(WorkerError, match=f"device '{name}': ValueError: bad luck"):
            workers.call(name, fail)
        assert workers.call(name, double, 1) == (name, 2)
        pids = [process.pid for process in workers._processes.values()]
        folder = workers.folder
        with pytest.raises(
            WorkerError, match=f"device '{name}': its worker was killed by signal 9"
        ):
            workers.call(name, die)
    assert not folder.exists()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_workers_die_with_a_killed_parent_and_the_next_run_removes_its_files(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys, time\n"
        "from executor.workers import Workers\nfrom executor.devices import local_devices\n"
        "with Workers(local_devices()) as w:\n"
        "    (w.folder / 'tensor').touch()\n"
        "    print(w.folder, *[p.pid for p in w._processes.values()], flush=True)\n"
        "    time.sleep(600)\n"
    )
    root = Path(__file__).parent.parent
    parent = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    folder, *pids = parent.stdout.readline().split()
    pids = [int(pid) for pid in pids]
    release_folder(*claim_folder())
    assert Path(folder, "tensor").exists()
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in pids)
    release_folder(*claim_folder())
    assert not Path(folder).exists()


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def workers():
    devices = [d for d in local_devices() if d.kind == "cpu"]
    if len(devices) < 2:
        pytest.skip("needs two CPU slices, this machine has one core")
    with pytest.MonkeyPatch.context() as patch, Workers(tuple(devices)) as started:
        patch.setattr(run, "SECONDS_PER_WINDOW", 0.1)
        patch.setattr(whole, "SECONDS_PER_BASELINE", 0.1)
        patch.setattr(whole, "OP_TIMES_BUDGET_S", 0.1)
        yield started


@pytest.mark.parametrize("split", ["contiguous", "back and forth"])
@pytest.mark.parametrize("m", [1, 2])
def test_executed_plans_equal_the_unsplit_model(workers, split, m):
    model = load_model("zoo:cifar10-cnn", 4, "float32", m)
    graph = capture("zoo:cifar10-cnn", 4 // m)
    problem, plan = _plan_by_hand(workers, model, graph, m, split)
    _, reference = run_whole_in(workers, "cpu1", model, 4, quiet)
    execution = execute(workers, model, plan, problem, reference, quiet)
    assert execution.outputs_agree
    report = execution.report
    assert report.throughput_per_s > 0
    assert report.latency_band_s[0] <= report.latency_s.p50 <= report.latency_band_s[1]
    assert {s.name for s in report.spans if s.kind == "op"} == set(graph.by_name)
    assert set(report.busy_s) == {"cpu0", "cpu1"}


@pytest.mark.parametrize("m", [1, 2])
def test_replicas_take_turns_and_give_the_unsplit_output(workers, m):
    model = load_model("zoo:cifar10-cnn", 4, "float32", m)
    graph = capture("zoo:cifar10-cnn", 4 // m)
    problem, _ = _plan_by_hand(workers, model, graph, m, "contiguous")
    place = dict.fromkeys(graph.by_name, "cpu0")
    plan = finish_plan(problem, "replicated", place, 0.0, 0.0, {"cpu0": ("cpu1",)})
    _, reference = run_whole_in(workers, "cpu1", model, 4, quiet)
    execution = execute(workers, model, plan, problem, reference, quiet)
    assert execution.outputs_agree
    turns = {(s.resource, s.micro_batch % 2) for s in execution.report.pipeline_spans}
    assert turns == {("cpu0", 0), ("cpu1", 1)}


def _plan_by_hand(workers, model: LoadedModel, graph, m, split):
    from conftest import make_cluster

    cluster = Cluster(
        "local",
        {f"cpu{i}": p for i, p in enumerate(make_cluster().devices.values())},
        _renamed(make_cluster().links),
    )
    costs = op_times(workers, model, graph, quiet)
    assert costs.seconds.shape == (len(graph.ops), 2)
    problem = Problem(graph, cluster, costs, num_micro_batches=m)
    place = {
        op.name: f"cpu{(i // 3) % 2 if split == 'back and forth' else int(i > 5)}"
        for i, op in enumerate(graph.ops)
    }
    return problem, finish_plan(problem, split, place, 0.0, 0.0)


def _renamed(links):
    from dataclasses import replace

    names = {"a": "cpu0", "b": "cpu1"}
    return tuple(replace(link, src=names[link.src], dst=names[link.dst]) for link in links)


def test_cost_model_covers_the_zoo_on_a_catalog_gpu():
    from hardware.catalog import find_instance, instance_cluster

    graph = capture("zoo:gpt2", 1)
    table = cost_table(graph, instance_cluster(find_instance("aws/g5.xlarge")))
    assert 1e-3 < table.seconds[:, 0].sum() < 0.1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_cuda_devices_run_whole_models():
    device = next(d for d in local_devices() if d.kind == "gpu")
    model = load_model("zoo:cifar10-cnn", 4, "float32", 1)
    with Workers((device,)) as gpu:
        report, _ = run_whole_in(gpu, device.name, model, 4, quiet)
    assert report.throughput_per_s > 0
