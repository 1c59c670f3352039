"""The frozen classifier: read from a folder, or refused in one line before a step compiles or a folder is claimed."""

import jax
import numpy as np
import pytest
import tiny_run

from robust_vit import models, parallel
from robust_vit.models.weights import converted
from robust_vit.training import experiment, frozen, loop


def written(folder, **fields):
    """A small classifier in a folder of converted weights, drawn without JAX's compiler."""
    small = dict(width=16, depth=1, heads=2, patch_size=4, image_size=8, channels=1, num_classes=10, pooling="mean")
    module = models.build("vit", **small | {"positions": "sinusoidal"} | fields)
    shapes = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, *models.image_shape(module)), np.float32))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)
    converted.save(folder, "vit", module, variables)
    return module, variables


def learning(path, name="rslad"):
    return experiment.build(tiny_run.config(objective__name=name, objective__teacher=str(path)))


def test_a_folder_of_converted_weights_teaches(tmp_path):
    module, variables = written(tmp_path / "teacher")
    images = np.random.default_rng(1).uniform(size=(2, 8, 8, 1)).astype(np.float32)
    teacher = frozen.of(learning(tmp_path / "teacher"))
    np.testing.assert_allclose(teacher(images), module.apply(variables, images), rtol=1e-5)


def test_none_is_named_and_none_is_read():
    assert frozen.of(experiment.build(tiny_run.config())) is None


BAD = {
    "classes": (dict(num_classes=7), r"must be a classifier of 10 classes, as the data; this one has 7"),
    "size": (
        dict(image_size=16),
        r"must be a classifier of images \(8, 8, 1\), as training shows; this one takes \(16, 16, 1\)",
    ),
    "channels": (dict(channels=3), r"must be a classifier of images \(8, 8, 1\), .*; this one takes \(8, 8, 3\)"),
    "missing": (None, r"must be a run folder or a folder of converted weights"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_teacher_that_does_not_fit_is_one_line(tmp_path, kind):
    fields, message = BAD[kind]
    if fields is not None:
        written(tmp_path / "teacher", **fields)
    made = learning(tmp_path / "teacher")
    with pytest.raises(ValueError, match=rf"^objective.teacher = '.*teacher': {message}") as error:
        frozen.of(made)
    assert "\n" not in str(error.value)


def test_a_run_without_a_checkpoint_is_told_as_the_teacher_that_it_was_to_be(tmp_path):
    made = learning(tmp_path)
    loop.claim(tmp_path, made.config)
    with pytest.raises(ValueError, match=r"^objective.teacher = .*checkpoint") as error:
        frozen.of(made)
    assert "\n" not in str(error.value)


def test_a_bad_teacher_compiles_nothing_and_leaves_the_run_folder_unclaimed(tmp_path, monkeypatch):
    """So that the same command with the right one begins there."""
    monkeypatch.setattr(parallel, "compile", lambda *_, **__: pytest.fail("compiled"))
    config = tiny_run.config(objective__name="rslad", objective__teacher=str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match=r"^objective.teacher"):
        loop.run(config, tmp_path / "run", live=False)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("name", "path", "message"),
    [
        ("rslad", "", r"objective.teacher = '': must be a run folder or a folder of converted weights with"),
        ("trades", "runs/plain", r"objective.teacher = 'runs/plain': must be left out with objective.name = 'trades'"),
    ],
)
def test_a_teacher_is_named_where_one_is_needed_and_nowhere_else(name, path, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        learning(path, name)
