"""What a run writes while it runs."""

import importlib.resources
import io
import json
import math
import sys
import types

import jsonschema
import pytest
from rich.console import Console

from robust_vit.training import display, metrics, progress

SCHEMA = json.loads((importlib.resources.files("robust_vit") / "schemas" / "metrics.schema.json").read_text())
TRAIN = {"loss": 1.25, "robust_accuracy": 0.5, "gradient_norm": 2.0, "epsilon": 0.1, "learning_rate": 1e-3}
TRAIN |= {"step_seconds": 0.1, "images_per_second": 1000.0}


def rows(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_rows_and_plain_lines(tmp_path, capsys):
    made = progress.Progress(tmp_path, total_steps=10, live=False)
    made.write("train", 5, 0.5, loss=1.25, robust_accuracy=0.5, images_per_second=100.0)
    made.close()
    assert rows(tmp_path) == [
        {"schema": 1, "kind": "train", "step": 5, "epoch": 0.5}
        | {"loss": 1.25, "robust_accuracy": 0.5, "images_per_second": 100.0}
    ]
    shown = capsys.readouterr().out
    assert (
        "step 5/10" in shown
        and "loss 1.250" in shown
        and "50.0%" in shown
        and "100 images/s" in shown
        and "left" in shown
    )
    assert "\x1b" not in shown


def test_live_display_on_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    made = progress.Progress(tmp_path, total_steps=10)
    assert isinstance(made.display, display.Terminal)
    made.write("train", 5, 0.5, loss=1.25, robust_accuracy=0.5, images_per_second=100.0)
    made.write("validation", 5, 0.5, clean_accuracy=0.9, robust_accuracy=0.4)
    made.close()
    shown = capsys.readouterr().out
    assert "\x1b" in shown and "5/10" in shown and "90.0%" in shown


def test_resuming_drops_the_rows_it_will_write_again(tmp_path):
    first = progress.Progress(tmp_path, total_steps=10, live=False)
    for step in (2, 4, 6):
        first.write("train", step, 0.1 * step, loss=float(step))
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 8, "lo')  # torn by a kill
    again = progress.Progress(tmp_path, total_steps=10, start=4, live=False)
    again.write("train", 6, 0.6, loss=60.0)
    again.close()
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [(2, 2.0), (4, 4.0), (6, 60.0)]


def test_tensorboard_is_written_where_it_is_installed(tmp_path):
    pytest.importorskip("tensorboardX", reason="needs the optional extra .[tensorboard]")
    made = progress.Progress(tmp_path, total_steps=10, live=False, trackers="tensorboard")
    made.write("train", 5, 0.5, loss=1.25)
    made.close()
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_meter_means_and_compile_time():
    meter = metrics.Meter(batch_size=10)
    for loss in (1.0, 3.0):
        meter.add({"loss": loss, "clean_correct": 0.5, "robust_correct": 0.25})
    first = meter.read()
    assert first["loss"] == 2.0 and first["robust_accuracy"] == 0.25 and first["compile_seconds"] > 0
    meter.add({"loss": 5.0, "clean_correct": 0.5, "robust_correct": 0.25})
    assert "compile_seconds" not in meter.read()


# ------------------------------------------------------------------------------------------------------- the schema


def test_rows_follow_the_schema(tmp_path):
    made = progress.Progress(tmp_path, total_steps=10, live=False)
    made.write("train", 5, 0.5, **TRAIN, compile_seconds=3.0)
    made.write("validation", 5, 0.5, clean_accuracy=1.0, robust_accuracy=0.0)
    made.write("train", 6, 0.6, **(TRAIN | {"gradient_norm": math.inf}))
    made.close()
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for row in rows(tmp_path):
        jsonschema.validate(row, SCHEMA)
    assert rows(tmp_path)[2]["gradient_norm"] is None  # JSON knows no infinity


@pytest.mark.parametrize(
    "change",
    [{"kind": "test"}, {"step": -1}, {"schema": 2}, {"robust_accuracy": 50.0}, {"note": "text"}, {"learning_rate": -1}],
)
def test_the_schema_refuses_what_is_no_row(change):
    row = {"schema": 1, "kind": "train", "step": 5, "epoch": 0.5, **TRAIN}
    jsonschema.validate(row, SCHEMA)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(row | change, SCHEMA)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({name: value for name, value in row.items() if name != "loss"}, SCHEMA)


# ----------------------------------------------------------------------------------------------------- the displays


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_bar_keeps_steps_and_time_left_at_any_width(width, monkeypatch):
    out = io.StringIO()
    made = display.Terminal(0, 123456, Console(file=out, width=width, force_terminal=True, color_system=None))
    monkeypatch.setattr(made.clock, "began", made.clock.began - 3600)
    values = TRAIN | {"clean_accuracy": 0.75, "images_per_second": 123456.0}
    made.show("train", 61728, 150.2, values)
    made.show("validation", 61728, 150.2, {"clean_accuracy": 0.9, "robust_accuracy": 0.4})
    made.close()
    last = out.getvalue().split("\n")[-2]
    assert "epoch 150.2" in last and "61728/123456" in last and "left 1:00:0" in last
    assert len(last.split("\x1b[2K")[-1]) <= width
    assert "loss 1.250" in last or width < 80
    assert "123456 images/s" in last or width < 200


def test_a_reader_that_has_gone_ends_the_display_and_not_the_training(tmp_path, monkeypatch):
    def closed(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", closed)
    made = progress.Progress(tmp_path, total_steps=10, live=False)
    made.write("train", 5, 0.5, **TRAIN)
    made.write("train", 6, 0.6, **TRAIN)
    made.say("done")
    made.close()
    assert isinstance(made.display, display.Nothing) and len(rows(tmp_path)) == 2


class Handle:
    """What IPython's display returns."""

    def __init__(self, content):
        self.shown = [content]

    def update(self, content):
        self.shown.append(content)


@pytest.fixture
def notebook(monkeypatch):
    """A kernel, as IPython presents it; returns the handles that were displayed."""
    handles = []

    def show(content, display_id):
        handles.append(Handle(content))
        return handles[-1]

    shell = types.SimpleNamespace(kernel=object())
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: shell
    module = types.ModuleType("IPython.display")
    module.HTML, module.display = lambda text: text, show
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return handles


def test_a_notebook_shows_a_bar_that_updates_in_place(tmp_path, notebook):
    made = progress.Progress(tmp_path, total_steps=10)
    made.say("resuming at step <4>")
    made.write("train", 5, 0.5, **TRAIN)
    made.write("validation", 5, 0.5, clean_accuracy=0.9, robust_accuracy=0.4)
    made.close()
    (handle,) = notebook
    last = handle.shown[-1]
    assert '<progress value="5" max="10"></progress> 5/10' in last and "loss 1.250" in last and "left 0:00:" in last
    assert "resuming at step &lt;4&gt;" in last and "validation  clean  90.0%" in last


def test_ipython_is_not_imported_to_know_that_this_is_no_notebook(monkeypatch):
    assert not display.in_notebook()
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: None))
    assert not display.in_notebook()  # imported by a script
    terminal = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: terminal))
    assert not display.in_notebook()  # the shell on a terminal


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00:00"), (59.6, "0:01:00"), (3723, "1:02:03")])
def test_durations(seconds, text):
    assert display.duration(seconds) == text
