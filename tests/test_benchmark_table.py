"""`python -m benchmarks`: a row has a figure or says that it has none, and a goal that is missed says by how much."""

import importlib.util
import json
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
_spec = importlib.util.spec_from_file_location("benchmark_table", ROOT / "benchmarks" / "__main__.py")
table = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(table)


def test_figures_are_those_of_the_stored_results():
    report = json.loads((table.RESULTS / "autoattack.json").read_text())
    lines = list(table.lines())
    ratio = report["models"]["digits"]["ratio"]["seconds"]
    (line,) = [line for line in lines if "robust digits" in line]
    assert f"| 0.3x | {ratio:.2f}x" in line and "benchmarks/autoattack.py" in line
    assert len(lines) == len(table.ROWS) + 2


def test_a_row_says_what_is_not_measured_and_by_how_much_a_goal_is_missed(tmp_path):
    row = table.Row("q", "p", "s", 0.3, "r.json", ("a", "b"))
    assert table.figure(row, tmp_path) is None and table.verdict(row, None) == "not measured"
    (tmp_path / "r.json").write_text('{"a": {"b": 0.45}}')
    assert table.verdict(row, table.figure(row, tmp_path)) == "0.45x, missed by 50 %"
    assert table.verdict(row, 0.3) == "0.30x"
    (tmp_path / "r.json").write_text('{"a": {}}')
    assert table.figure(row, tmp_path) is None


@pytest.mark.parametrize("row", table.ROWS, ids=lambda row: row.question[:30])
def test_a_script_that_is_named_is_there(row):
    path = ROOT / row.script
    assert not row.script or row.script.startswith("robust-vit ") or path.is_file()
