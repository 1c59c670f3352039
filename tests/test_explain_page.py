"""docs/explain.md: its figures are those of its file, its commands can be typed, its examples run."""

import json
import pathlib
import re
import shlex

import pytest
from absl import flags
from test_front_door import make_run

import robust_vit as rv
from robust_vit import commands, explain
from robust_vit import config as config_lib
from robust_vit.analysis import semantics_plots

PAGE = pathlib.Path("docs/explain.md").read_text()
MEASURED = json.loads(pathlib.Path("docs/explain/semantics.json").read_text())
COMMANDS = [
    shlex.split(line) for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()
]
RANK_PROMOTION = "allow"


def cell(entry, share):
    scale, digits, unit = (100, 1, " %") if share else (1, 3, "")
    low, high = (f"{scale * end:.{digits}f}" for end in entry["interval"])
    return f"{scale * entry['value']:.{digits}f}{unit} ({low} – {high})"


def table():
    """The table of the page, from the file that the command has written."""
    first, second = MEASURED["runs"]
    lines = [f"| | {first} | {second} | difference |", "|---|--:|--:|--:|"]
    for name, words in MEASURED["figures"].items():
        entries = [MEASURED["runs"][run][name] for run in (first, second)]
        entries.append(MEASURED["differences"][f"{first} - {second}"][name])
        lines.append("| " + " | ".join([words, *(cell(entry, "cosine" not in words) for entry in entries)]) + " |")
    return "\n".join(lines)


def test_the_figures_are_those_that_were_measured():
    between = PAGE.partition("<!-- figures: begin -->\n")[2].partition("\n<!-- figures: end -->")[0]
    assert between == table()
    assert MEASURED["figures"] == semantics_plots.FIGURES
    accuracy = MEASURED["judge_accuracy"]
    assert cell(accuracy, True) in PAGE and "1,257" in PAGE and "1257" in MEASURED["judge"]


def test_robust_and_natural_are_apart_on_digits():
    apart = MEASURED["differences"]["madry - plain"]
    for name in ("figure", "prototype", "from_noise", "from_image"):
        assert apart[name]["interval"][0] > 0
    assert apart["perturbation"]["interval"][1] < 0  # and this one the other way, as the page says


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_can_be_typed(words):
    assert words[:1] == ["robust-vit"] and words[1] in commands.COMMANDS
    if words[1] == "train":
        config_lib.load_file(dict(word.removeprefix("--").split("=", 1) for word in words[2:])["config"])
        return
    values = flags.FlagValues()
    values.append_flag_values(explain._FLAGS)
    commands.parse(values, words[1:])
    assert set(values["what"].value.split(",")) <= set(explain.KINDS)


def test_every_picture_is_there():
    named = re.findall(r"!\[[^\]]{10,}\]\((explain/[\w-]+\.png)\)", PAGE)
    assert len(named) >= 7 and all((pathlib.Path("docs") / name).is_file() for name in named)


@pytest.mark.slow
def test_the_examples_run(tmp_path, monkeypatch):
    run = make_run(tmp_path / "madry", "digits")
    load = rv.load
    monkeypatch.setattr(rv, "load", lambda folder: load(run), raising=False)
    space = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "docs/explain.md", "exec"), space)
    assert space["rollout"].shape == (8, 2, 2) and space["made"].shape == (10, 8, 8, 1)
