"""Numbers for people: SI inside, scaled units only where a person reads them."""

_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def format_count(value: float, unit: str) -> str:
    """Scale a count by powers of 1000: 8.18e9, 'FLOP' -> '8.18 GFLOP'."""
    for scale, prefix in _PREFIXES:
        if abs(value) >= scale:
            return f"{value / scale:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def format_bytes(value: float) -> str:
    """Scale bytes by powers of 1024: 2**30 -> '1.00 GiB'."""
    for scale, prefix in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(value) >= scale:
            return f"{value / scale:.2f} {prefix}"
    return f"{value:.0f} B"


def format_seconds(value: float) -> str:
    """Scale seconds to ns, us, ms, s, min or h."""
    if value == 0:
        return "0 s"
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if abs(value) >= scale:
            if value < 120:
                return f"{value / scale:.3g} {unit}"
            return f"{value / 60:.3g} min" if value < 7200 else f"{value / 3600:.3g} h"
    return f"{value / 1e-9:.3g} ns"


def format_usd(value: float) -> str:
    """US dollars with three significant digits below ten."""
    return f"${value:.2f}" if value >= 10 else f"${value:.3g}"


def format_figure(figure: str, value: float) -> str:
    """A figure of a device with its unit, told by its name."""
    if figure.startswith("peak_flops_per_s"):
        return format_count(value, "FLOP/s")
    if figure in ("memory_bytes", "cache_bytes"):
        return format_bytes(value)
    units = {"memory_bytes_per_s": "B/s", "clock_hz": "Hz"}
    if figure in units:
        return format_count(value, units[figure])
    return f"{value:g} W" if figure in ("power_w", "idle_power_w") else f"{value:g}"
