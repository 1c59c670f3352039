"""`rv.load` and `rv.Classifier`, as a user in a notebook meets them."""

import copy
import functools
import pickle
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import robust_vit as rv
from robust_vit.evaluation import fingerprint
from robust_vit.models.weights import converted, torch_weights
from robust_vit.training import checkpoint, loop, state

RANK_PROMOTION = "allow"  # of the models that are made here

EXAMPLES = 12  # of the test split


def make_run(workdir, name, **options):
    """Writes a run of one checkpoint, made without training."""
    config = rv.config.base()
    config.data.name = name
    config.data.options = rv.config.ConfigDict(options)
    config.model.update({"name": "vit", "depth": 1, "width": 16, "heads": 2, "patch_size": 4, "channels": 1})
    config.data.batch_size = 8
    config.attack.epsilon = 0.1
    config.evaluation.update({"batch_size": 8, "steps": 2, "restarts": 1})
    experiment = loop.build(config)
    loop.claim(workdir, experiment.config)
    make = functools.partial(state.create, experiment.module, experiment.tx, experiment.dataset.image_shape, 0, False)
    kept = checkpoint.Checkpoints(workdir, select="robust_accuracy")
    kept.save(7, jax.jit(make)(), {}, {"robust_accuracy": 0.5})
    kept.close()
    return workdir


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"), "synthetic", size=8, channels=1, classes=4, examples=5 * EXAMPLES)


@pytest.fixture(scope="module")
def classifier(run_folder):
    return rv.load(run_folder)


@pytest.fixture(scope="module")
def examples(classifier):
    dataset = rv.data.build("synthetic", **rv.config.plain(classifier.config.data.options))
    batch = next(iter(rv.data.evaluate(dataset.test, batch_size=EXAMPLES)))
    return batch["image"], batch["label"]


def test_a_run_says_in_one_line_what_it_is(classifier):
    assert repr(classifier) == "ViT, 3.75k weights, step 7, Linf 0.1"
    assert classifier.threat == rv.Threat("linf", 0.1)
    assert classifier.class_names == ("disc", "square", "triangle", "cross")


def test_it_is_a_logits_fn_and_a_pytree_of_weights(run_folder, classifier, examples):
    config, module, variables, _ = checkpoint.load(run_folder)
    images = rv.pixels.as_float(jnp.asarray(examples[0]))
    expected = module.apply(variables, images)
    np.testing.assert_array_equal(classifier(images), expected)
    np.testing.assert_array_equal(classifier(examples[0]), expected)  # uint8 too
    assert jax.tree.structure(jax.tree.leaves(classifier)) == jax.tree.structure(jax.tree.leaves(variables))
    doubled = jax.tree.map(lambda weight: 2 * weight, classifier)
    assert isinstance(doubled, rv.Classifier) and repr(doubled) == repr(classifier)
    np.testing.assert_array_equal(doubled(images), module.apply(jax.tree.map(lambda w: 2 * w, variables), images))


def test_equal_modules_share_one_compilation(run_folder, classifier):
    traces = []

    @jax.jit
    def run(logits_fn, images):
        traces.append(1)
        return logits_fn(images)

    other = jax.tree.map(lambda weight: weight + 1, rv.load(run_folder, checkpoint="latest"))
    images = jnp.zeros((2, 8, 8, 1))
    assert not jnp.array_equal(run(classifier, images), run(other, images))
    assert len(traces) == 1
    run(rv.load(run_folder, threat="l2-0.5"), images)  # a compiled function may read the threat
    assert len(traces) == 2


def test_its_hash_is_that_of_the_models_logits_fn(classifier):
    """So that ledgers and results of the commands and of the library are of the same weights."""
    plain = rv.models.logits_fn(classifier.module, classifier.variables)
    assert fingerprint.weights(classifier) == fingerprint.weights(plain)


def test_copies_and_pickles_keep_everything(classifier, examples):
    for twin in (copy.copy(classifier), copy.deepcopy(classifier), pickle.loads(pickle.dumps(classifier))):
        assert repr(twin) == repr(classifier)
        np.testing.assert_array_equal(twin(examples[0]), classifier(examples[0]))


def test_attack_is_the_attack_of_the_package(classifier, examples):
    images, labels = examples
    found = classifier.attack("pgd", images, labels, steps=3, seed=5)
    keys = rv.randomness.example_keys(5, np.arange(EXAMPLES), rv.randomness.EVALUATION_ATTACK)
    attack = rv.attacks.pgd(norm="linf", epsilon=0.1, steps=3)
    clean = rv.pixels.as_float(jnp.asarray(images))
    np.testing.assert_allclose(found, jax.jit(attack)(keys, classifier, clean, labels), atol=1e-6)
    assert 0.05 < jnp.abs(found - clean).max() <= 0.1 + 1e-6


def test_attacks_do_not_depend_on_the_batch_and_take_another_threat(classifier, examples):
    images, labels = examples
    whole = classifier.attack("pgd", images, labels, steps=2)
    some = classifier.attack("pgd", images[3:], labels[3:], steps=2, indices=np.arange(3, EXAMPLES), batch_size=5)
    np.testing.assert_allclose(some, whole[3:], atol=1e-6)
    moved = classifier.attack("fgsm", images, labels, threat="l2-0.5") - rv.pixels.as_float(images)
    assert 0.4 < jnp.sqrt(jnp.sum(moved**2, axis=(1, 2, 3))).max() <= 0.5 + 1e-5
    moved = classifier.attack("fgsm", images, labels, epsilon=np.full(EXAMPLES, 0.02)) - rv.pixels.as_float(images)
    assert 0.01 < jnp.abs(moved).max() <= 0.02 + 1e-6


def test_predictions_in_batches(classifier, examples):
    images, _ = examples
    expected = np.argmax(classifier(images), axis=-1)
    for size in (5, 256):
        np.testing.assert_array_equal(classifier.predict(images, batch_size=size), expected)


def test_attention_maps(classifier, examples):
    (maps,) = classifier.attention(examples[0])
    assert maps.shape == (EXAMPLES, 2, 5, 5)
    np.testing.assert_allclose(maps.sum(-1), 1, atol=1e-5)


@pytest.mark.slow
def test_evaluate_agrees_with_the_suites_and_with_every_kind_of_data(classifier, examples, tmp_path):
    lines = []
    result = classifier.evaluate("clean,pgd", workdir=tmp_path, say=lines.append)
    dataset = rv.data.build("synthetic", **rv.config.plain(classifier.config.data.options))
    measured = rv.evaluation.Measurer().measure(classifier, rv.data.evaluate(dataset.test, batch_size=4))
    assert result["clean"]["accuracy"] == measured.accuracy and result["clean"]["examples"] == EXAMPLES
    assert result["pgd"]["epsilon"] == 0.1 and result["pgd"]["steps"] == 2
    assert (tmp_path / "result.json").is_file() and any(line.startswith("pgd: accuracy") for line in lines)
    for data in (dataset, dataset.test, examples):
        again = classifier.evaluate("clean", data, batch_size=8, say=lines.append)
        assert again["clean"]["accuracy"] == measured.accuracy
    some = classifier.evaluate("clean", examples, limit=5, batch_size=8, say=lines.append)
    assert some["clean"]["examples"] == 5


def test_results_of_other_examples_stay_apart(classifier, examples, tmp_path):
    images, labels = examples
    first = classifier.evaluate("clean", (images[:6], labels[:6]), workdir=tmp_path, say=lambda line: None)
    second = classifier.evaluate("clean", (images[6:], labels[6:]), workdir=tmp_path, say=lambda line: None)
    assert first["split"] != second["split"] and second["previous"][0]["split"] == first["split"]


def test_converted_weights_and_files(tmp_path):
    fields = dict(depth=1, width=16, heads=2, patch_size=4, image_size=8, num_classes=4)
    module = rv.models.build("deit_tiny_patch16_224", **fields)
    variables = rv.models.init(module, jax.random.key(1))
    converted.save(tmp_path / "folder", "deit_tiny_patch16_224", module, variables)
    safetensors.numpy.save_file(torch_weights.to_timm(module, variables), tmp_path / "deit.safetensors")
    images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))
    folder = rv.load(tmp_path / "folder", threat="linf-4/255")
    assert repr(folder) == "deit_tiny_patch16_224, 4.26k weights, Linf 4/255"
    file = rv.load(tmp_path / "deit.safetensors", model="deit_tiny_patch16_224", **fields)
    assert repr(file) == "deit_tiny_patch16_224, 4.26k weights"
    for found in (folder, file):
        np.testing.assert_allclose(found(images), module.apply(variables, images), atol=1e-6)


def test_any_function_becomes_a_classifier(examples):
    images, labels = examples
    weights = jax.random.normal(jax.random.key(0), (64, 4))
    linear = rv.Classifier(jax.tree_util.Partial(lambda w, x: x.reshape(len(x), -1) @ w, weights), threat="linf-0.1")
    assert repr(linear) == "<lambda>, 256 weights, Linf 0.1" and linear.module is None
    assert linear.attack("pgd", images, labels, steps=2).shape == images.shape
    assert set(linear.evaluate("clean,fgsm", examples, say=lambda line: None)) >= {"clean", "fgsm"}
    hidden = rv.Classifier(lambda x: x.reshape(len(x), -1) @ weights)
    np.testing.assert_array_equal(hidden.predict(images), linear.predict(images))


def test_autoattack_takes_it_in_another_precision(classifier, examples):
    found = rv.evaluation.autoattack(
        classifier, *examples, threat=classifier.threat, version=["square"], budget=0.001, compute_dtype="bfloat16"
    )
    assert found.examples == EXAMPLES and found.norm == "linf" and np.all(found.epsilon == np.float32(0.1))


def test_the_example_of_the_package_runs(tmp_path, monkeypatch, capsys):
    """On a run of its name that nobody has trained, and with fewer steps."""
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "digits", "digits")
    lines = rv.__doc__.split("\n\n")[1:3]
    code = textwrap.dedent("\n".join(lines))
    assert len([line for line in code.splitlines() if line]) == 6
    exec(code.replace("steps=50, restarts=5", "steps=2"), {})
    clean, robust = map(float, capsys.readouterr().out.split())
    assert 0 <= robust <= clean < 0.5  # of untrained weights


ERRORS = {
    "nothing there": (lambda c, x, y, p: rv.load(p / "none"), r"path = '.*none': must be a run folder, .* nothing of"),
    "an empty folder": (lambda c, x, y, p: rv.load(p), "holds neither config.json nor model.json"),
    "a file of what": (lambda c, x, y, p: rv.load(__file__), "model = None: must be given with a file of weights"),
    "no such file kind": (lambda c, x, y, p: rv.load(__file__, model="vit"), "test_front_door.py'"),
    "attack": (lambda c, x, y, p: c.attack("pdg", x, y), "attack = 'pdg': must be one of .*did you mean 'pgd'"),
    "keyword": (lambda c, x, y, p: c.attack("pgd", x, y, steps=0), "steps = 0: must be"),
    "threat": (lambda c, x, y, p: c.attack("pgd", x, y, threat="linf-8"), "epsilon = 8.0: must be at most 1"),
    "no threat": (lambda c, x, y, p: rv.Classifier(c.func).attack("pgd", x, y), "threat = None: must be given"),
    "labels": (
        lambda c, x, y, p: c.attack("pgd", x, y[:3]),
        r"labels.shape = \(3,\): must be \(12,\), or distributions \(12, 4\)",
    ),
    "label": (lambda c, x, y, p: c.attack("pgd", x, y + 1), r"labels = 4: must be in \[0, 4\)"),
    "three arrays": (lambda c, x, y, p: c.evaluate("clean", (x, y, y)), "data = '3 arrays': must be .images, labels."),
    "no jax": (
        lambda c, x, y, p: rv.Classifier(lambda x: np.asarray(x).sum((1, 2)), threat="linf-0.1").predict(x),
        "is not traceable by JAX .*gradient-free",
    ),
    "no logits": (lambda c, x, y, p: rv.Classifier(lambda x: (x, x)).predict(x), "a tuple of 2 .*must be one float"),
    "path": (lambda c, x, y, p: rv.load(3), "path = 3: must be a run folder"),
    "channels of a call": (lambda c, x, y, p: c(np.repeat(x, 3, axis=-1)), r"8, 3\]': must be .B,H,W,C. with C = 1"),
    "batch size": (lambda c, x, y, p: c.evaluate("clean", batch_size=0), "batch_size = 0: must be at least 1"),
    "data": (lambda c, x, y, p: c.evaluate("clean", 5), "data = 5: must be the name of a split, .images, labels."),
    "indices": (lambda c, x, y, p: c.attack("pgd", x, y, indices=[1, 2]), r"indices.shape = \(2,\): must be \(12,\)"),
    "channels": (
        lambda c, x, y, p: c.attack("pgd", np.repeat(x, 3, axis=-1), y),
        r"images = 'uint8\[12, 8, 8, 3\]': must be \[B,8,8,1\], as the model takes them",
    ),
    "size": (lambda c, x, y, p: c.predict(x[:, :4]), r"images = 'uint8\[12, 4, 8, 1\]': must be \[B,8,8,1\]"),
    "pixels": (lambda c, x, y, p: c.predict(x.astype("float32")), r"floats in \[0, 2..\]': must be uint8, or floats"),
    "one image": (lambda c, x, y, p: c.predict(x[0]), r"of shape \[B,H,W,C\]"),
    "no images": (lambda c, x, y, p: c.predict(x[:0]), "at least one image"),
    "suite": (lambda c, x, y, p: c.evaluate("claen"), "suite = 'claen': must be one of .*did you mean 'clean'"),
    "split": (lambda c, x, y, p: c.evaluate("clean", "tset"), "split = 'tset': must be one of train, validation, test"),
    "option": (lambda c, x, y, p: c.evaluate("sweep", sweep_stesp=3), "option = 'sweep_stesp'.*did you mean"),
    "no run": (lambda c, x, y, p: rv.Classifier(c.func, threat="linf-0.1").evaluate("clean"), "data = 'test': must be"),
    "no maps": (
        lambda c, x, y, p: rv.Classifier(lambda x: x).attention(x),
        "attention = .<lambda>.: must be asked of a model",
    ),
    "step": (lambda c, x, y, p: rv.load(p / "run", checkpoint=8), "step = 8: no such checkpoint in .*one of .7"),
    "override": (lambda c, x, y, p: rv.load(p / "run", depth=3), "overrides = {'depth': 3}: must be left out"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_is_missing_is_said_in_one_line(case, classifier, examples, run_folder, tmp_path):
    make, message = ERRORS[case]
    (tmp_path / "run").symlink_to(run_folder)
    with pytest.raises(ValueError, match=message) as caught:
        make(classifier, *examples, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_run_without_checkpoint_is_said_in_one_line(run_folder, tmp_path):
    (tmp_path / "config.json").write_text((run_folder / "config.json").read_text())
    with pytest.raises(ValueError, match="no such checkpoint in .*holds none yet") as caught:
        rv.load(tmp_path)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]  # the folder is left as it was
