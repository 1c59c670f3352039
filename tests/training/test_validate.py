"""Every field of the configuration is checked, by one line that names it, before anything compiles."""

import math

import jax
import numpy as np
import pytest

from robust_vit import config as config_lib
from robust_vit.training import experiment, validate

# A name nobody has, numbers that are none, a wrong kind: no field takes any of them (data.workers takes -1).
BAD = {"nan": math.nan, "infinite": math.inf, "negative": -2, "unknown": "no such thing", "kind": {"a": 1}}
MODEL = ("model.depth", "model.heads", "model.width", "model.patch_size", "model.channels")
FREE = (*MODEL, "data.options.path", "attack.options.queries")


def digits(**changes):
    """configs/digits.py:adversarial with fields set whatever their types; double underscores are dots."""
    config = config_lib.load_file("digits:adversarial")
    for name, value in changes.items():
        put(config, name.replace("__", "."), value)
    return config


def put(config, name, value):
    section, _, field = name.rpartition(".")
    with config.unlocked(), config.ignore_type():
        (config_lib.get(config, section) if section else config)[field] = value


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


@pytest.mark.parametrize("name", [*config_lib.fields(config_lib.base()), *FREE])
def test_every_field_refuses_bad_values_by_name(name, compilations):
    for kind, value in BAD.items():
        config = digits()
        put(config, name, value)
        with pytest.raises(ValueError) as error:
            experiment.build(config)
        line = str(error.value)
        assert name in line and "\n" not in line, (kind, line)
    assert not compilations


def test_a_compilation_would_be_noticed(compilations):
    jax.jit(lambda x: 3 * x + len(compilations))(1.0)
    assert compilations


def test_the_table_has_every_field_and_no_other():
    assert set(validate.FIELDS) == set(config_lib.fields(config_lib.base()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(model__depth=0), r"model.depth = 0: must be a whole number >= 1"),
        (dict(model__heads=0), r"model.heads = 0: must be a whole number >= 1"),
        (dict(model__heads=3), r"model.width = 64: must be divisible by heads = 3"),
        (dict(model__channels=3), r"model.channels = 3: must be 1, as in the data"),
        (dict(model__num_classes=7), r"model.num_classes = 7: must be 10, as in the data"),
        (dict(model__image_size=16), r"model.image_size = 16: must be \(8, 8\), as in the data"),
        (dict(model__mean=(0.3, 0.3)), r"model.mean = \(0.3, 0.3\): must be as long as model.std"),
        (dict(model__depth=(2, 2)), r"model.depth = \(2, 2\): must be a whole number >= 1"),
        (dict(model__image_size=(8, 0)), r"model.image_size = \(8, 0\): must be a sequence of whole numbers >= 1"),
        (
            dict(model__name="swin_tiny_patch4_window7_224"),
            r"model.heads = 4: must be a sequence of whole",
        ),
        (dict(model__mlp_ratio=0.0), r"model.mlp_ratio = 0.0: must be > 0 and finite"),
        (dict(model__layer_scale=math.nan), r"model.layer_scale = nan: must be finite"),
        (dict(model__mean=(math.nan,)), r"model.mean = \(nan,\): must be a sequence of finite numbers"),
        (dict(model__std=(0.0,)), r"model.std = \(0.0,\): must be positive"),
        (dict(optimizer__b1=1.0), r"optimizer.b1 = 1.0: must be in \[0, 1\)"),
        (dict(optimizer__b2=-0.1), r"optimizer.b2 = -0.1: must be in \[0, 1\)"),
        (dict(training__epochs=math.inf), r"training.epochs = inf: must be > 0 and finite"),
        (dict(attack__epsilon=math.nan), r"attack.epsilon = nan: must be a finite number"),
        (dict(attack__epsilon=math.inf, attack__norm="l2"), r"attack.epsilon = inf: must be a finite number"),
        (dict(attack__epsilon="0.1"), r"attack.epsilon = '0.1': must be a finite number"),
        (dict(attack__steps=True), r"attack.steps = True: must be a whole number >= 1"),
        (dict(attack__steps=7.0), r"attack.steps = 7.0: must be a whole number >= 1"),
        (dict(attack__restarts=2, attack__keep="last"), r"attack.restarts = 2: must be 1 with keep = 'last'"),
        (dict(attack__schedule="constant"), r"attack.warmup_epochs = 12.0: must be 0 with attack.schedule"),
        (dict(seed=2**32), r"seed = 4294967296: must be a whole number in \[0, 4294967295\]"),
        (dict(evaluation__suite="clean,pdg"), r"evaluation.suite = 'pdg': must be one of .*did you mean 'pgd'"),
        (dict(evaluation__suite="clean,,pgd"), r"evaluation.suite = '': must be one of"),
        (dict(data__train_transforms=("flp",)), r"data.train_transforms: .*'flp'.*flip"),
        (dict(data__options__sise=8), r"data.options.sise: digits takes"),
        (dict(training__epoch=3.0), r"config.training.epoch: no such field; did you mean 'training.epochs'"),
        (dict(objective__name="trades", attack__random_start=False), r"attack.random_start = False: must be True for"),
        (
            dict(optimizer__warmup_learning_rate=1e-6, optimizer__warmup_epochs=0.0),
            r"optimizer.warmup_learning_rate = 1e-06: must be 0 with",
        ),
        (dict(optimizer__cooldown_epochs=300.0), r"optimizer.cooldown_epochs = 300.0: must be shorter than"),
        (dict(optimizer__per_epoch=True, training__epochs=2.5), r"optimizer.per_epoch = True: must be False unless"),
        (dict(optimizer__schedule="multistep"), r"optimizer.milestones = \(\): must be given with"),
        (dict(optimizer__milestones=(2, 1)), r"optimizer.milestones = \(2, 1\): must be a sequence of epochs"),
        (dict(optimizer__milestones=(2,)), r"optimizer.milestones = \(2,\): must be left at \(\): adamw with"),
        (dict(optimizer__base_batch=512), r"optimizer.base_batch = 512: must be left at 256 with"),
        (dict(optimizer__lion_b2=0.9), r"optimizer.lion_b2 = 0.9: must be left at 0.99: adamw with"),
    ],
)
def test_a_bad_value_is_named_before_anything_compiles(changes, message, compilations):
    with pytest.raises(ValueError, match=message) as error:
        experiment.build(digits(**changes))
    assert "\n" not in str(error.value) and not compilations


def test_a_field_that_is_missing_is_named():
    config = digits()
    with config.unlocked():
        del config.training.epochs
    with pytest.raises(ValueError, match=r"^training.epochs: is missing"):
        validate.validate(config)


def test_a_config_without_a_section_is_named():
    with pytest.raises(ValueError, match=r"^data.name: is missing"):
        validate.validate(config_lib.ConfigDict({"seed": 0}))


def test_channels_classes_and_size_come_from_the_data():
    config = digits()
    with config.unlocked():
        del config.model.channels
    made = experiment.build(config)
    assert (made.module.channels, made.module.num_classes, made.module.image_size) == (1, 10, (8, 8))
    assert (config.model.channels, config.model.num_classes, config.model.image_size) == (1, 10, (8, 8))


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (dict(classes=4), r"test split of npz: labels = .*classes of train"),
        (dict(channels=3), r"test split of npz: image shape = \(8, 8, 3\)"),
        (None, r"test split of npz: .*test"),
    ],
)
def test_a_missing_or_unfitting_split_is_found_before_anything_compiles(tmp_path, test, message, compilations):
    def write(split, classes=3, channels=1):
        images = np.zeros((24, 8, 8, channels), np.uint8)
        np.savez(tmp_path / f"{split}.npz", image=images, label=np.arange(24) % classes)

    write("train")
    if test is not None:
        write("test", **test)
    config = digits(data__name="npz", data__options__path=str(tmp_path))
    with pytest.raises(ValueError, match=message) as error:
        experiment.build(config)
    assert "\n" not in str(error.value) and not compilations
