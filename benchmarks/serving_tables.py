"""Reads the measured rows of the package aiconfigurator-core (Apache-2.0) as kernels."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd  # type: ignore[import-untyped]

from hardware.catalog import find_profile
from hardware.kernel_model import Chip
from scheduler.cost_model.kernel_fit import Sample
from scheduler.cost_model.kernels import FORMS, chip_of

SOURCE = "aiconfigurator-core 0.12.0, Apache-2.0, NVIDIA"
ENGINE = "vllm"
DEVICES = {
    "a100_sxm": "0.14.0",
    "h100_sxm": "0.24.0",
    "h200_sxm": "0.24.0",
    "b200_sxm": "0.24.0",
    "b300_sxm": "0.24.0",
    "gb200": "0.24.0",
    "gb300": "0.24.0",
    "l40s": "0.24.0",
    "rtx_pro_6000_server": "0.24.0",
    "b60": "0.26.0",
}
"""Folders of the devices, and the release of vLLM whose tables are read: the package's current."""
CACHE_BYTES = {"b60": 18 * 2**20}
"""Assumed where the catalog has none."""
MAX_DEPTH = 256
FILES = {
    "product": "gemm/{}/{}/gemm_perf.parquet",
    "prefill": "attention/{}/{}/context_attention_perf.parquet",
    "decode": "attention/{}/{}/generation_attention_perf.parquet",
}
NAMES = {
    "batch_size": "batch",
    "num_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "isl": "queries",
    "head_dim": "depth",
}


def installed() -> Path | None:
    """Folder of the tables in the installed package, if it is installed."""
    found = find_spec("aiconfigurator_core")
    return Path(found.origin).parent / "systems" / "data" if found and found.origin else None


def chip(device: str) -> Chip:
    """Figures of a folder's device, from the catalog."""
    profile = find_profile(device)
    if profile.cache_bytes is None:
        profile = replace(profile, cache_bytes=CACHE_BYTES[device])
    made = chip_of(profile, "bfloat16")
    if made is None:
        raise ValueError(f"device '{device}': the catalog lacks its number of compute units")
    return made


def catalog_name(device: str) -> str:
    """Name in the catalog of a folder's device."""
    return find_profile(device).name


def read_rows(data: Path, device: str, form: str, engine: str = "", release: str = "") -> Sample:
    """All bfloat16 rows of a device; rows of one shape are joined by their median.

    Attention: full (no sliding window), keys and values in bfloat16, head sizes up to 256.
    """
    path = data / device / FILES[form].format(engine or ENGINE, release or DEVICES[device])
    rows = pd.read_parquet(path)
    if form == "product":
        rows = rows[rows["gemm_dtype"] == "bfloat16"].assign(batch=1)
    else:
        rows = rows.rename(columns=NAMES)
        kept = (rows["attn_dtype"] == "bfloat16") & (rows["kv_cache_dtype"] == "bfloat16")
        kept &= rows["depth"].astype(int) <= MAX_DEPTH
        if "window_size" in rows:
            kept &= rows["window_size"].astype(int) == 0
        rows = rows[kept].astype({"queries": int, "step": int})
        rows = rows.assign(keys=rows["queries"] + rows["step"], causal=1)
        rows["kv_heads"] = rows["kv_heads"].where(rows["kv_heads"] > 0, rows["heads"])
    sizes = list(FORMS[form].sizes)
    rows = rows.groupby(sizes, as_index=False)["latency"].median()
    columns = {name: rows[name].to_numpy(dtype=float) for name in sizes}
    return Sample(columns, rows["latency"].to_numpy(dtype=float) * 1e-3, chip(device))


def table(samples: dict[str, Sample], form: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Union of all shapes (num_shapes, num_sizes), and where each device's rows lie in it."""
    stacked = [np.column_stack([s.sizes[n] for n in FORMS[form].sizes]) for s in samples.values()]
    union, back = np.unique(np.concatenate(stacked), axis=0, return_inverse=True)
    ends = np.cumsum([len(rows) for rows in stacked])
    return union, dict(zip(samples, np.split(back.ravel(), ends[:-1]), strict=True))
