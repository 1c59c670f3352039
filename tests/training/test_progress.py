"""What a run writes while it runs."""

import json

import pytest

from robust_vit.training import display, metrics, progress


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
