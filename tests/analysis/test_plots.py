"""Pictures are written whole, show the right figures, and leave matplotlib's global state alone."""

import json

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.legend import Legend
from PIL import Image

from robust_vit.analysis import plots


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved, so that a test can read what is on them."""
    seen = []
    save = plots._save
    monkeypatch.setattr(plots, "_save", lambda figure, out: (seen.append(figure), save(figure, out))[1])
    return seen


def texts(axes):
    return [t.get_text() for t in axes.texts] + [axes.get_title(), axes.get_title("left"), axes.get_xlabel()]


def legends(axes):
    """What all legends of a panel say."""
    return [text.get_text() for made in axes.findobj(Legend) for text in made.get_texts()]


def circled(axes):
    """The points with a ring around them."""
    return [tuple(line.get_xydata()[0]) for line in axes.lines if line.get_markerfacecolor() == "none"]


def rows():
    for step in range(1, 9):
        yield {
            "kind": "train",
            "step": step,
            "epoch": step / 2,
            "loss": 2 / step,
            "epsilon": 0.1,
            "learning_rate": 1e-3,
        }
    yield {"kind": "validation", "step": 4, "epoch": 2.0, "clean_accuracy": 0.9, "robust_accuracy": 0.625}
    yield {"kind": "validation", "step": 8, "epoch": 4.0, "clean_accuracy": 0.95, "robust_accuracy": 0.5}


def test_curves_show_all_rows_and_mark_the_selected_checkpoint(tmp_path, figures):
    lines = [json.dumps(row) for row in rows()]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"kind": "tr')  # a kill has torn the last line
    before = dict(mpl.rcParams)
    words = {"training_attack": "PGD-7, Linf", "validation_attack": "PGD-20, Linf 0.1"}
    chosen = {"selected": 8, "select": "robust_accuracy"}  # not the step of the highest figure: what is reported
    found = plots.curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png", **chosen, **words)
    assert dict(mpl.rcParams) == before and found is figures[0]
    loss, accuracy, epsilon, rate = figures[0].axes
    np.testing.assert_allclose(loss.lines[0].get_xydata(), [(s / 2, 2 / s) for s in range(1, 9)])
    drawn = {line.get_label(): line.get_ydata().tolist() for line in accuracy.lines}
    assert drawn["clean, validation"] == [0.9, 0.95] and drawn["robust, validation"] == [0.625, 0.5]
    assert circled(accuracy) == [(4.0, 0.5)] and "selected by robust accuracy: 50.0% at step 8" in legends(accuracy)
    assert "accuracy (robust in validation: PGD-20, Linf 0.1)" in texts(accuracy)
    assert "epsilon in training (PGD-7, Linf)" in texts(epsilon)
    assert set(epsilon.lines[0].get_ydata()) == {0.1} and set(rate.lines[0].get_ydata()) == {1e-3}
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size[0] >= 1500
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.png", "metrics.jsonl"]


def test_without_an_attack_no_epsilon_is_drawn(tmp_path, figures):
    """configs/digits.py:standard trains on clean images."""
    lines = [json.dumps({name: value for name, value in row.items() if name != "epsilon"}) for row in rows()]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    plots.curves(tmp_path / "metrics.jsonl", selected=4, select="clean_accuracy", validation_attack="PGD-20, Linf 0.1")
    assert [axes.get_title("left") for axes in figures[0].axes] == [
        "training loss",
        "accuracy (robust in validation: PGD-20, Linf 0.1)",
        "learning rate",
    ]
    accuracy = figures[0].axes[1]
    assert circled(accuracy) == [(2.0, 0.9)] and "selected by clean accuracy: 90.0% at step 4" in legends(accuracy)
    assert not list(tmp_path.glob("*.png"))  # nothing is written unless asked for


def test_a_checkpoint_that_no_validation_selected_is_not_circled(tmp_path, figures):
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows()))
    plots.curves(tmp_path / "metrics.jsonl", selected=6, select="ema_robust_accuracy")
    assert circled(figures[0].axes[1]) == []


def test_words_keep_off_the_lines(tmp_path):
    """The legends stand outside of the panel that they belong to, and inside of the figure."""
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows()))
    figure = plots.curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png", selected=8, select="robust_accuracy")
    panel = figure.axes[1].get_window_extent()
    boxes = [made.get_window_extent() for made in figure.axes[1].findobj(Legend)]
    assert len(boxes) == 2
    for box in boxes:
        assert not panel.shrunk(0.99, 0.99).overlaps(box)
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1


def test_curves_without_a_training_row_are_an_error(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="no row of kind 'train'"):
        plots.curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")


@pytest.mark.parametrize("channels", [1, 3])
def test_examples_tell_right_from_wrong_and_state_the_scale(tmp_path, figures, channels):
    rng = np.random.default_rng(0)
    images = rng.uniform(0.2, 0.8, (4, 6, 6, channels))
    change = np.where(rng.uniform(size=images.shape) > 0.5, 0.1, -0.1)
    labels = np.arange(4)
    right = np.full((4, 4), 0.1) + 0.6 * np.eye(4)
    wrong = np.roll(right, 1, axis=1)
    names = ["ant", "bee", "cat", "a very long name of a class"]
    figure = plots.examples(
        images, images + change, labels, right, wrong, names, 0.1, tmp_path / "examples.png", "PGD-50, Linf 0.1"
    )
    assert figure.get_suptitle() == "PGD-50, Linf 0.1"
    grid = np.array(figures[0].axes[:12]).reshape(3, 4)
    assert [axes.get_xlabel() for axes in grid[0, :3]] == ["ant  70%", "bee  70%", "cat  70%"]
    assert grid[2, 0].get_xlabel() == "bee  70%" and grid[0, 3].get_title() == "a very long n…"
    assert {axes.xaxis.label.get_color() for axes in grid[0]} == {plots.RIGHT}
    assert {axes.xaxis.label.get_color() for axes in grid[2]} == {plots.WRONG}
    np.testing.assert_allclose(np.squeeze(grid[2, 1].images[0].get_array()), np.squeeze(images[1] + change[1]))
    if channels == 1:
        np.testing.assert_allclose(grid[1, 0].images[0].get_array(), change[0, ..., 0])
        ticks = [t.get_text() for t in figures[0].axes[12].get_yticklabels()]
        assert ticks == ["−0.1", "0", "+0.1"]
    else:
        assert "change × 5 around grey" in grid[1, 3].get_xlabel()


def test_examples_without_any_perturbation_can_be_drawn(tmp_path):
    images = np.full((1, 4, 4, 1), 0.5)
    plots.examples(images, images, [0], np.eye(2)[:1], np.eye(2)[:1], ["a", "b"], 0.0, tmp_path / "examples.png")
    with Image.open(tmp_path / "examples.png") as picture:
        assert picture.size[0] > 100


def test_sweep_marks_the_threat_model(tmp_path, figures):
    curve = [
        {"epsilon": e, "accuracy": a, "interval": [max(a - 0.05, 0), min(a + 0.05, 1)]}
        for e, a in ((0.2, 0.1), (0.0, 0.98), (0.1, 0.75))
    ]
    plots.sweep({"norm": "linf", "steps": 20, "curve": curve, "threat_epsilon": 0.1}, tmp_path / "sweep.png")
    (axes,) = figures[0].axes
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [(0, 0.98), (0.1, 0.75), (0.2, 0.1)])
    assert {"clean 98.0%", "75.0% at 0.1", "accuracy against epsilon (Linf, PGD-20)"} <= set(texts(axes))
