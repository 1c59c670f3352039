"""The arithmetic of the benchmark's report; the measurements need other packages and a quiet machine."""

import importlib.util
import pathlib

import pytest

FILE = pathlib.Path(__file__).parent.parent / "benchmarks" / "autoattack.py"
_spec = importlib.util.spec_from_file_location("benchmark_autoattack", FILE)
benchmark = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(benchmark)


def run(seconds, robust_accuracy, **more):
    split = {name: {"seconds": seconds / 4} for name in benchmark.ATTACKS}
    measured = {"seconds": seconds, "processor_seconds": 2 * seconds, "robust_accuracy": robust_accuracy}
    return measured | {"split": split} | more


def test_ratio_is_of_the_medians_and_the_table_says_it():
    ours = [run(seconds, 0.5, compile_seconds=1.0) for seconds in (3.0, 1.0, 2.0)]
    official = [run(seconds, 0.51) for seconds in (100.0, 8.0, 4.0)]
    found = benchmark.summary({"ours": ours, "official": official})
    assert found["ratio"]["seconds"] == pytest.approx(2 / 8)
    assert found["robust_accuracy_difference_points"] == pytest.approx(-1.0)

    entry = {
        "command": "c",
        "points": 3,
        "budget": 1.0,
        "cores": 2,
        "load_before": 0.1,
        "ours": ours,
        "official": official,
    } | found
    report = {"hardware": {"cpu": "p", "cores": 2}, "models": {"digits": entry}}
    text = benchmark.table(report)
    assert "digits: 0.25x the official wall time" in text
    assert "| digits | 3, 1, 2 | official | 51.00 % | 8.0 | 16.0 |  | 2.0 |" in text


def test_one_side_alone_has_no_ratio():
    assert set(benchmark.summary({"ours": [run(1.0, 0.5)]})) == {"median"}
