"""Trade-offs, published figures and a run's history: the right numbers, the true Pareto front."""

import json
import pathlib
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robust_vit import models
from robust_vit.analysis import published, tradeoffs
from robust_vit.analysis.history import History

sys.path.insert(0, str(pathlib.Path(__file__).parent / "report"))

from made import entry, folder  # noqa: E402

MODEL = {"name": "vit", "depth": 1, "width": 16, "heads": 2, "patch_size": 4, "image_size": [8, 8], "channels": 1}


def write_run(path, correct, **suites):
    threat = {"norm": "linf", "epsilon": 0.1}
    folder(path, False, pgd=entry(correct, **threat), **suites)
    config = {"model": MODEL | {"num_classes": 4, "mean": [0.3], "std": [0.4]}, "data": {"name": "digits"}}
    (path / "config.json").write_text(json.dumps(config))
    rows = [{"kind": "train", "step": s, "images_per_second": v} for s, v in ((1, 10.0), (2, 30.0), (3, 1000.0))]
    (path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_run_is_read_with_its_size_and_speed(tmp_path):
    import jax

    point = tradeoffs.read(write_run(tmp_path / "a", 5))
    assert (point.clean, point.robust, point.name) == (11 / 12, 5 / 12, "a")
    assert point.robust_interval == tuple(entry(5)["interval"]) and point.attack == "PGD, Linf 0.1"
    module = models.build(**MODEL | {"image_size": (8, 8), "num_classes": 4})
    variables = jax.eval_shape(lambda: models.init(module, jax.random.key(0)))
    assert point.parameters == sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert point.macs > 1000 and point.images_per_second == 30.0
    by_file = tradeoffs.read(tmp_path / "a" / "result.json", sizes=False)
    assert by_file.parameters is None and by_file.robust == point.robust


def test_a_run_without_figures_says_which_command_measures_them(tmp_path):
    with pytest.raises(ValueError, match=r"robust-vit evaluate --workdir=\S+ makes it"):
        tradeoffs.read(tmp_path)
    (tmp_path / "result.json").write_text(json.dumps({"schema": 2, "clean": entry(3)}))
    with pytest.raises(ValueError, match=r"must be evaluated: robust-vit evaluate --workdir=\S+ --suite=autoattack"):
        tradeoffs.read(tmp_path)


coordinates = st.sampled_from([0.1, 0.2, 0.3, 0.4, None])


@given(st.lists(st.tuples(coordinates, st.sampled_from([0.1, 0.2, 0.3])), min_size=1, max_size=8), st.booleans())
def test_the_front_is_what_nothing_beats(values, smaller):
    x, sign = ("parameters", -1) if smaller else ("clean", 1)
    points = [tradeoffs.Point(str(n), **({"clean": 0.5} | {x: a}), robust=b) for n, (a, b) in enumerate(values)]
    expected = set()
    for n, (a, b) in enumerate(values):
        others = [(sign * c, d) for c, d in values if c is not None]
        if a is not None and not any(c >= sign * a and d >= b and (c, d) != (sign * a, b) for c, d in others):
            expected.add(n)
    found = tradeoffs.front(points, x)
    assert set(found) == expected and len(found) == len(expected)
    assert [values[n][0] for n in found] == sorted(values[n][0] for n in found)


def test_published_rows_are_as_their_sources_print_them():
    rows = list(published.table())
    keys = [(row.data, row.epsilon, row.model) for row in rows]
    assert len(set(keys)) == len(keys) > 30
    assert all(0 < row.robust < row.clean < 1 and row.source for row in rows)
    assert {row.architecture for row in rows if row.architecture} <= set(models.names())
    found = {(row.model, row.source): (row.clean, row.robust) for row in published.of("imagenet", "linf", 4 / 255)}
    assert found["XCiT-S12", published.LIGHT] == pytest.approx((0.7234, 0.4178))
    assert found["ResNet-50 (GELU)", published.LIGHT] == pytest.approx((0.6654, 0.3512))
    assert found["Swin-L", published.LIU] == pytest.approx((0.7892, 0.5956))
    with pytest.raises(ValueError, match=r"published = 'digits linf-0.1': must be one of imagenet linf-4/255"):
        published.of("digits", "linf", 0.1)
    with pytest.raises(ValueError, match="must be a data set and a threat"):
        tradeoffs.published("imagenet")


def test_robustness_against_scale_is_drawn_with_names_beside(tmp_path):
    from matplotlib.legend import Legend

    points = tradeoffs.published("imagenet-linf-4/255")
    by_name = {point.name: point for point in points}
    sizes = [by_name[name].parameters for name in ("XCiT-S12", "XCiT-M12", "XCiT-L12")]
    assert sizes == sorted(sizes) and sizes[0] > 20e6
    own = tradeoffs.Point("mine", 0.7, 0.5, (0.68, 0.72), (0.48, 0.52), "AutoAttack", 30_000_000)
    figure = tradeoffs.plot([own, *points], x="parameters")
    figure.savefig(tmp_path / "x.png")
    (legend,) = figure.findobj(Legend)
    labels = [text.get_text() for text in legend.get_texts()]
    assert any(label.startswith("mine: 50.0 %") for label in labels)
    assert sum(label.endswith("published") for label in labels) == sum(p.parameters is not None for p in points)
    assert labels[-1].startswith("parameters unknown: ConvNeXt-L-CvSt")
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == sum(p.parameters is not None for p in points)
    assert not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[:n]), "numbers keep apart"
    assert not figure.axes[0].get_window_extent().overlaps(legend.get_window_extent())
    told = tradeoffs.numbers([own, *points], "parameters")
    line = next(line for line in figure.axes[0].lines if line.get_label() == "Pareto front")
    robust = {point["name"]: point["robust"] for point in told["points"]}
    assert line.get_ydata().tolist() == [robust[name] for name in told["front"]]


def test_a_history_is_columns_that_plot_themselves(tmp_path):
    rows = [{"kind": "train", "step": s, "loss": 1 / s, "schema": 1, "learning_rate": 0.1} for s in (1, 2, 3)]
    rows += [{"kind": "train", "step": 3, "loss": 0.25, "learning_rate": 0.1, "note": "x"}]  # done again after a kill
    rows += [{"kind": "validation", "step": s, "robust_accuracy": a} for s, a in ((2, 0.5), (3, None), (4, 0.5))]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"torn')
    history = History.read(tmp_path)
    assert repr(history) == "3 rows of training, 3 of validation, to step 4"
    np.testing.assert_allclose(history["loss"], [1, 0.5, 0.25])
    np.testing.assert_array_equal(np.isnan(history.validation["robust_accuracy"]), [False, True, False])
    assert history.best("robust_accuracy") == (2, 0.5) and set(history.train) == {"step", "loss", "learning_rate"}
    np.testing.assert_allclose(history.plot().axes[0].lines[0].get_xydata(), [[1, 1], [2, 0.5], [3, 1 / 3], [3, 0.25]])
    with pytest.raises(ValueError, match="column = 'los': .*did you mean 'loss'"):
        history["los"]
    with pytest.raises(ValueError, match=r"robust-vit train --config=digits --workdir=\S+ makes it"):
        History.read(tmp_path / "none")
