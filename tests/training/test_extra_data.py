"""Generated data in a run: what fits is found out before anything compiles; a run knows the data that it began with."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import config as tiny

from robust_vit import attacks, main, pixels
from robust_vit import config as config_lib
from robust_vit.attacks.losses import cross_entropy
from robust_vit.data import pipeline
from robust_vit.training import checkpoint, experiment, loop, optimizer, state, step
from robust_vit.typing import Outcome


def write(path, count=40, classes=10, shape=(8, 8, 1), first=0):
    images = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
    np.savez(path, image=images, label=(first + np.arange(count) % classes).astype(np.uint8))
    return str(path)


def mixed(path, **changes):
    config = tiny(**changes)
    config.data.extra.update({"name": "npz", "ratio": 0.7, "label_smoothing": 0.1})
    config.data.extra.options = config_lib.ConfigDict({"path": str(path)})
    return config


@pytest.fixture
def compilations():
    """Events of JAX's compiler since the test began."""
    events = []

    def listen(event, *_, **__):
        if "compile" in event:
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(shape=(32, 32, 3)), r"data.extra, npz: image shape = \(32, 32, 3\): must be \(8, 8, 1\), as in train"),
        (dict(shape=(8, 8, 3)), r"data.extra, npz: image shape = \(8, 8, 3\): must be \(8, 8, 1\), as in train"),
        (dict(classes=11), r"data.extra, npz: labels = \[0, 10\]: must be in \[0, 10\), the classes of train"),
        (dict(count=0), "data.extra, npz: examples = 0: must be at least 1"),
        (
            None,
            "data.extra, npz: data.extra.options.path = .*nowhere.npz': must be a folder with train.npz, ..., or one",
        ),
    ],
)
def test_data_that_do_not_fit_are_named_before_anything_compiles(tmp_path, change, message, compilations):
    path = tmp_path / "nowhere.npz" if change is None else write(tmp_path / "generated.npz", **change)
    with pytest.raises(ValueError, match=message) as error:
        experiment.build(mixed(path))
    assert "\n" not in str(error.value) and not compilations


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(ratio=1.0), r"data.extra.ratio = 1.0: must be in \[0, 1\)"),
        (dict(ratio=0.0), r"data.extra.ratio = 0.0: must be in \(0, 1\) with data.extra.name"),
        (dict(ratio=0.001), "data.extra.ratio = 0.001: must be such that both sources have a row among 64"),
        (dict(name="npzz"), "data.extra.name = 'npzz': must be one of .*did you mean 'npz'"),
        (dict(name=""), "data.extra.label_smoothing = 0.1: must be left at 0.0: no second source does not take it"),
        (dict(label_smoothing=1.0), r"data.extra.label_smoothing = 1.0: must be in \[0, 1\)"),
    ],
)
def test_a_bad_field_is_named(changes, message):
    config = mixed("generated.npz")
    config.data.extra.update(changes)
    with pytest.raises(ValueError, match=message) as error:
        experiment.build(config)
    assert "\n" not in str(error.value)


def test_an_unknown_option_is_named_as_the_configuration_does():
    config = mixed("generated.npz")
    config.data.extra.options.pth = "x"
    with pytest.raises(ValueError, match="data.extra.options.pth: npz takes .*did you mean 'path'"):
        experiment.build(config)


def test_copies_that_do_not_divide_the_batch_are_named():
    with pytest.raises(ValueError, match="data.repeats = 3: must be a divisor of data.batch_size = 64"):
        experiment.build(tiny(data__repeats=3))


def test_the_command_line_says_it_all():
    flags = ("name=npz", "options.path=/data/1m.npz", "ratio=7/10", "label_smoothing=0.1")
    typed = ["main", "--workdir=unused", *(f"--config.data.extra.{flag}" for flag in flags), "--config.data.repeats=4"]
    section = main.parse(typed)[0].data
    assert config_lib.plain(section.extra) == {
        "name": "npz",
        "options": {"path": "/data/1m.npz"},
        "ratio": 0.7,
        "label_smoothing": 0.1,
    }
    assert section.repeats == 4
    with pytest.raises(ValueError, match="data.extra.name = '': must be one of"):
        main.parse(["main", "--workdir=unused", "--config.data.extra.options.path=x"])


def test_a_run_is_of_the_generated_data_that_it_began_with(tmp_path):
    path = write(tmp_path / "generated.npz")
    built = experiment.build(mixed(path))
    loop.claim(tmp_path / "run", built.config, built.dataset)
    loop.claim(tmp_path / "run", built.config, experiment.build(mixed(path)).dataset)
    described = built.dataset.description()["splits"]["extra"]
    assert described["examples"] == 40 and described["origin"].endswith("generated.npz")
    assert built.dataset.digests()["extra"] == described["digest"]
    write(tmp_path / "generated.npz", first=0, classes=9)
    with pytest.raises(ValueError, match="data: the extra split is not the one that the run in .* began with"):
        loop.claim(tmp_path / "run", built.config, experiment.build(mixed(path)).dataset)


def test_an_epoch_is_as_many_images_as_the_first_source_has(tmp_path):
    path = write(tmp_path / "generated.npz", count=5000)
    assert experiment.build(mixed(path)).steps_per_epoch == experiment.build(tiny()).steps_per_epoch == 1257 / 64
    assert experiment.build(tiny(data__repeats=4)).steps_per_epoch == 1257 / 64


class Linear(nn.Module):
    drop_path: float = 0.0

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(10)(images.reshape(len(images), -1))


def remembering(forward, statistics, adversary, attack, keys, images, targets, strength=1.0, aside=None):
    """An objective that hands back what it was given."""
    logits, statistics = forward(images, statistics)
    memory = {"keys": jax.random.key_data(keys), "images": images, "targets": targets}
    return Outcome(cross_entropy(logits, targets), statistics, memory=memory)


def test_labels_of_the_second_source_alone_are_smoothed_and_every_copy_has_its_own_key(tmp_path):
    dataset = experiment.build_data(mixed(write(tmp_path / "generated.npz")))
    batches = pipeline.train(dataset.train, batch_size=8, seed=0, extra=dataset.extra.source, ratio=0.5, repeats=2)
    batch = next(batches)
    batches.close()
    memory = {"keys": jnp.zeros((8, 2), jnp.uint32), "images": jnp.zeros((8, 8, 8, 1)), "targets": jnp.zeros((8, 10))}
    tx, attack = optimizer.build("sgd"), attacks.fgsm(norm="linf", epsilon=0.1)
    made = step.make(Linear(), remembering, attack, tx, num_classes=10, seed=0, extra_smoothing=0.1)
    start = state.create(Linear(), tx, (8, 8, 1), 0, False, lambda: memory)
    seen = jax.device_get(jax.jit(made)(start, batch, 0.1, 1.0)[0].memory)
    hot = np.eye(10)[batch["label"]]
    np.testing.assert_allclose(seen["targets"], np.where(batch["extra"][:, None], 0.9 * hot + 0.01, hot), atol=1e-6)
    np.testing.assert_array_equal(seen["images"], pixels.as_float(batch["image"]))
    assert len({tuple(key) for key in seen["keys"].tolist()}) == 8
    real = ~batch["extra"][:4]
    np.testing.assert_array_equal(seen["images"][:4][real], seen["images"][4:][real])


@pytest.mark.slow
def test_a_run_with_generated_data_resumes_to_the_same_bits(tmp_path, monkeypatch):
    path = write(tmp_path / "generated.npz")
    changes = dict(
        evaluation__suite="", training__epochs=0.3, data__repeats=2, data__train_transforms=("random_crop(8, 1)",)
    )
    loop.run(mixed(path, **changes), tmp_path / "whole", live=False)
    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_stopping", lambda trainer: trainer.step >= 3)
        assert loop.run(mixed(path, **changes), tmp_path / "stopped", live=False) is None
    loop.run(mixed(path, **changes), tmp_path / "stopped", live=False)
    whole, resumed = (checkpoint.load(tmp_path / run, "latest") for run in ("whole", "stopped"))
    assert whole[3] == resumed[3] == 6
    for there, here in zip(jax.tree.leaves(whole[2]), jax.tree.leaves(resumed[2]), strict=True):
        np.testing.assert_array_equal(there, here)
