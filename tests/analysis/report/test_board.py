"""The table of all runs: the right figures in the right order, in three forms, each of which escapes what it shows."""

import csv
import io
import json
import re

import pytest
from made import EVIL, entry, folder
from test_page import Reader

from robust_vit import leaderboard
from robust_vit.analysis.report import board, page

THREAT = {"norm": "linf", "epsilon": 0.1}


def write_config(path, **fields):
    config = {"seed": 0, "data": {"name": "digits"}, "attack": {"steps": 7, "name": "pgd"}} | fields
    (path / "config.json").write_text(json.dumps(config))


@pytest.fixture
def runs(tmp_path):
    """Three runs: b the most robust under AutoAttack, c without AutoAttack, a the last; and one without a result."""
    cost = {"seconds": 90.4, "command": "x"}
    made = {
        "a": {"autoattack": entry(3, version="standard", **THREAT), "pgd": entry(9, **THREAT)},
        "b": {"autoattack": entry(6, version="standard", **THREAT) | {"measured": cost}},
        "c": {"pgd": entry(10, **THREAT)},
    }
    for name, suites in made.items():
        folder(tmp_path / name, with_walk=False, split="test", **suites)
        write_config(tmp_path / name)
    write_config(tmp_path / "b", seed=3, attack={"steps": 2, "name": "pgd", "loss": f"{EVIL}|`x`"})
    rows = [{"kind": "train", "step": s, "step_seconds": t} for s, t in ((10, 0.5), (20, 1.0), (20, 2.0), (25, 2.0))]
    (tmp_path / "b" / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in [*rows, {"kind": "validation"}]))
    (tmp_path / "d").mkdir()
    return tmp_path


def test_the_most_robust_run_comes_first_with_its_cost_and_what_sets_it_apart(runs):
    rows = board.gather([runs / name for name in "abcd"])
    assert [row.name for row in rows] == ["b", "a", "c"]
    first = rows[0]
    assert first.figures["autoattack"][0] == 0.5 and first.figures["autoattack"][1:3] == tuple(entry(6)["interval"])
    assert first.training_seconds == 10 * 0.5 + 10 * 2.0 + 5 * 2.0, "a step that was repeated counts once"
    assert first.evaluation_seconds == 90.4 and rows[2].evaluation_seconds is None
    assert first.apart == (f"attack.loss={EVIL}|`x`", "attack.steps=2") and rows[1].apart == ()
    assert (first.data, first.threat) == ("digits, test", "Linf 0.1")


def test_what_an_earlier_version_did_not_write_is_todays_default(runs):
    write_config(runs / "c", awp={"gamma": 0.0}, attack={"steps": 7, "name": "pgd", "restarts": 2})
    rows = {row.name: row for row in board.gather([runs / name for name in "abc"])}
    assert rows["c"].apart == ("attack.restarts=2",), "gamma 0 is the default, and no difference"


def test_the_three_forms_hold_the_same(runs):
    page.write(runs / "b")
    rows = board.gather([runs / name for name in "abc"])
    paths = {path.suffix: path for path in board.write(rows, runs / "out")}
    table = list(csv.DictReader(io.StringIO(paths[".csv"].read_text())))
    assert [row["run"] for row in table] == ["b", "a", "c"] and float(table[0]["autoattack"]) == 0.5
    assert table[2]["autoattack"] == "" and float(table[0]["training_seconds"]) == 35.0
    assert table[0]["apart"] == f"attack.loss={EVIL}|`x`; attack.steps=2"
    lines = paths[".md"].read_text().splitlines()
    assert len(lines) == 5 and all(len(re.findall(r"(?<!\\)\|", line)) == len(board.HEAD_CELLS) + 1 for line in lines)
    assert "50.00 % (25.4 – 74.6)" in lines[2] and "<img" not in lines[2] and r"\`x\`" in lines[2]
    read = Reader(paths[".html"].read_text())
    assert EVIL in read.text and not read.of("img")
    assert [a["href"] for a in read.of("a")] == ["../b/report/index.html"], "runs with a page are linked"
    assert (paths[".html"].parent / "../b/report/index.html").is_file()
    values = [a["data-value"] for a in read.of("td")]
    assert values[4] == "0.5" and len(values) == 3 * len(board.HEAD_CELLS)


def test_the_command_prints_writes_and_names_what_it_leaves_out(runs, capsys):
    rows = leaderboard.main(["leaderboard", *(str(runs / name) for name in "abcd"), f"--out={runs}"])
    printed = capsys.readouterr().out
    assert [row.name for row in rows] == ["b", "a", "c"]
    assert "50.00 % (25.4" in printed.replace("\n", " ") and f"left out: {runs / 'd'} has no result" in printed
    assert f"b: attack.loss={EVIL}|`x`; attack.steps=2\n" in printed and "\na: " not in printed
    assert {path.name for path in runs.glob("leaderboard.*")} == {f"leaderboard.{e}" for e in ("md", "csv", "html")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "runs = []: must be run folders"), (["{}/d"], "folders with results: robust-vit evaluate --workdir=RUN")],
)
def test_bad_input_is_one_line(runs, arguments, message):
    with pytest.raises(SystemExit, match=r"error: ") as stop:
        leaderboard.main(["leaderboard", *(argument.format(runs) for argument in arguments)])
    assert message in str(stop.value) and "\n" not in str(stop.value)


def test_two_runs_stand_on_one_page(tmp_path):
    from robust_vit import explain

    first = folder(tmp_path / "first")
    second = folder(tmp_path / "second", with_walk=False, pgd=entry(2, **THREAT, steps=3, step_size=0.05))
    for path, steps in ((first, 7), (second, 2)):
        write_config(path, attack={"steps": steps})
    files = explain.main(["explain", "--compare", str(first), str(second)])["compare"]
    assert files == [first / "report" / "first-second.html"]
    read = Reader(files[0].read_text())
    assert "attack.steps = 7 in first, 2 in second" in read.text and "-25.00" in read.text
    assert EVIL in read.text and not [a for a in read.of("img") if "onerror" in a]
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)


def test_a_comparison_of_one_run_or_of_other_data_is_one_line(tmp_path):
    from robust_vit import explain

    first, second = folder(tmp_path / "first", False), folder(tmp_path / "second", False, split="train")
    for given, message in (
        ([str(first)], "two run folders: robust-vit explain --compare RUN1 RUN2"),
        ([str(first), str(second)], "data of second"),
    ):
        with pytest.raises(SystemExit) as stop:
            explain.main(["explain", "--compare", *given])
        assert message in str(stop.value) and "\n" not in str(stop.value)


def test_where_two_runs_part_is_counted():
    import numpy as np

    from robust_vit.analysis.report import pair
    from robust_vit.evaluation import pairs

    def of(robust):
        return {"pgd": entry(sum(robust), 4, **THREAT, outcomes=pairs.pack(np.arange(4), np.array(robust, bool)))}

    told = pair.apart([of([1, 1, 1, 0]), of([1, 0, 0, 1])], ["x", "y"])
    assert told == "Of 4 examples under PGD, 1 stand in both; 2 only x (1, 2); 1 only y (3)."
