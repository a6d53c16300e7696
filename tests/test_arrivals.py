import itertools
import math
import os

import numpy as np
import pytest

from simulator.arrivals import ARRIVALS, Traffic, draw
from simulator.trace import read_trace

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:50.9951690,879,55
"""


def gaps(traffic, seed=0):
    return np.diff(draw(traffic, np.random.default_rng(seed)).arrival_s)


@pytest.mark.parametrize("arrivals", ARRIVALS)
def test_every_process_has_its_rate_and_its_order(arrivals):
    traffic = Traffic(
        50, arrivals, duration_s=2000, period_s=100 if arrivals == "diurnal" else None
    )
    requests = draw(traffic, np.random.default_rng(3))
    assert requests.rate == pytest.approx(50, rel=0.02)
    assert (np.diff(requests.arrival_s) >= 0).all()
    assert requests.arrival_s[0] >= 0
    assert requests.arrival_s[-1] < 2000


@pytest.mark.parametrize(("arrivals", "cv"), [("poisson", None), ("gamma", 3.0), ("gamma", 0.4)])
def test_gaps_are_as_bursty_as_asked(arrivals, cv):
    found = gaps(Traffic(10, arrivals, 20_000, cv=cv))
    assert found.std() / found.mean() == pytest.approx(cv or 1.0, rel=0.03)


def test_a_day_swings_between_trough_and_peak():
    traffic = Traffic(100, "diurnal", duration_s=1000, peak_to_trough=4, period_s=1000)
    arrival_s = draw(traffic, np.random.default_rng(0)).arrival_s
    counts = np.histogram(arrival_s, 50, (0, 1000))[0] / 20
    middle_s = np.arange(10, 1000, 20)
    assert counts == pytest.approx(100 * (1 - 0.6 * np.cos(2 * np.pi * middle_s / 1000)), rel=0.15)
    assert np.median(counts[:3]) == pytest.approx(40, rel=0.15)
    assert np.median(counts[23:27]) == pytest.approx(160, rel=0.1)


def test_the_seed_decides():
    traffic = Traffic(10, "gamma", 100, cv=2)
    assert (gaps(traffic, 1)[:50] == gaps(traffic, 1)[:50]).all()
    assert (gaps(traffic, 1)[:50] != gaps(traffic, 2)[:50]).any()


def test_more_requests_than_fit_are_refused():
    with pytest.raises(ValueError, match="at most 20,000,000 are simulated in a run; shorten"):
        draw(Traffic(1e6, duration_s=3600), np.random.default_rng(0))


def write(tmp_path, text):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    return path


def test_the_azure_format_is_read_as_it_is(tmp_path):
    requests = read_trace(write(tmp_path, AZURE))
    assert requests.arrival_s == pytest.approx([0, 4.314579, 4.314579])
    assert requests.prompt_tokens.tolist() == [374, 396, 879]
    assert requests.output_tokens.tolist() == [44, 109, 55]
    assert requests.duration_s == pytest.approx(1.5 * 4.314579)


def test_a_trace_of_seconds_counts_from_its_first_and_is_cut_by_the_duration(tmp_path):
    path = write(tmp_path, "id,arrival_s\na,10\nb,10.5\nc,12\nd,30\n")
    traffic = Traffic(trace=str(path), duration_s=5)
    requests = draw(traffic, np.random.default_rng(0))
    assert requests.arrival_s.tolist() == [0, 0.5, 2]
    assert requests.prompt_tokens is None
    assert requests.rate == pytest.approx(3 / 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as a CSV"),
        ("time\n", "no requests"),
        ("time\n1\n0.5\n", "row 2 is earlier than the row above; sort the file by time"),
        ("time\n-1\n2\n", "row 1: time must not be negative, got -1"),
        ("time\n1\nnan\n", "row 2 has no time"),
        ("time\n1\ninf\n", "row 2: time must be a finite number"),
        ("time\nsoon\n", "times must be seconds or timestamps .* got 'soon' in row 1"),
        ("time\n1\nsoon\n", "got 'soon' in row 2"),
        ("time\n2023-11-16 18:15:46.68\n3.5\nlater\n", "got 'later' in row 3"),
        ("time\n0\n1e300\n", "row 2: times must be seconds, within 1e\\+09 s of the first"),
        ("when\n1\n", "no column of times among when; accepted: timestamp"),
        ("time,prompt_tokens\n1,2\n", "column output_tokens is missing"),
        ("time,prompt_tokens,output_tokens\n1,2,0\n", "row 1: output_tokens must be at least 1"),
        ("time,prompt_tokens,output_tokens\n1,2,\n", "row 1 has no output_tokens"),
        (
            "time,prompt_tokens,output_tokens\n1,2.5,1\n",
            "row 1: prompt_tokens must be a whole",
        ),
        ("time,prompt_tokens,output_tokens\n1,2,1\n2,many,1\n", "got 'many' in row 2"),
        ("time\n1\n2,3\n", "cannot be read as a CSV"),
    ],
)
def test_a_broken_trace_is_one_clear_error(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_trace(write(tmp_path, text))


def test_a_missing_or_endless_trace_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no such file"):
        read_trace(tmp_path / "none.csv")
    monkeypatch.setattr("simulator.trace.MAX_ROWS", 2)
    with pytest.raises(ValueError, match="3 rows, at most 2 are read; split it"):
        read_trace(write(tmp_path, AZURE))


def test_a_changed_trace_is_read_again(tmp_path):
    path = write(tmp_path, "time\n0\n1\n")
    assert len(read_trace(path).arrival_s) == 2
    path.write_text("time\n0\n1\n2\n")
    os.utime(path, ns=(1, 1))
    assert len(read_trace(path).arrival_s) == 3


def test_rates_over_a_whole_period_do_not_depend_on_the_swing():
    counts = [
        len(draw(Traffic(20, "diurnal", 3000, None, 0, None, ratio, 300), rng).arrival_s)
        for ratio, rng in itertools.product([1, 10], [np.random.default_rng(0)])
    ]
    assert counts == pytest.approx([60_000, 60_000], abs=4 * math.sqrt(60_000))
