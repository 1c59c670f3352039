"""Any callable is a classifier, compiled once for equals; what returns no logits is told in one line."""

import dataclasses
import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial

from robust_vit import models
from robust_vit.evaluation import Measurer, autoattack
from robust_vit.evaluation.callables import as_logits_fn, check_logits, is_traceable, on_host

RANK_PROMOTION = "allow"  # of the models that are made here

SHAPE, CLASSES = (4, 4, 1), 3


def linear(weights, images):
    return images.reshape(images.shape[0], -1) @ weights


@pytest.fixture(scope="module")
def weights():
    return jnp.asarray(np.random.default_rng(0).normal(size=(16, CLASSES)), jnp.float32)


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(1).uniform(size=(5, *SHAPE)), jnp.float32)


class Struct(flax.struct.PyTreeNode):
    weights: jax.Array

    def __call__(self, images):
        return linear(self.weights, images)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Mixed:
    """As an Equinox module has it: leaves that are functions, numbers and texts."""

    weights: jax.Array
    activation: object
    power: int
    name: str

    def __call__(self, images):
        return self.activation(linear(self.weights, images)) ** self.power


class Plain:
    def __init__(self, weights):
        self.weights = weights

    def __call__(self, images):
        return linear(self.weights, images)

    def forward(self, images):
        return linear(self.weights, images)

    def __eq__(self, other):  # and therefore no hash
        return True


class Nnx(nnx.Module):
    def __init__(self, weights):
        self.weights = nnx.Param(weights)

    def __call__(self, images):
        return linear(self.weights[...], images)


def every_kind(weights):
    dense = nn.Dense(CLASSES, use_bias=False)
    return {
        "partial": Partial(linear, weights),
        "struct": Struct(weights),
        "mixed": Mixed(weights, jnp.tanh, 1, "mixed"),
        "nnx": Nnx(weights),
        "functools": functools.partial(linear, weights),
        "module": lambda x: dense.apply({"params": {"kernel": weights}}, x.reshape(len(x), -1)),
        "lambda": lambda x: linear(weights, x),
        "object": Plain(weights),
        "method": Plain(weights).forward,
        "numpy weights": functools.partial(linear, np.asarray(weights)),
        "static argument": Partial(lambda weights, mode, x: linear(weights, x), weights, "evaluation"),
    }


@pytest.mark.parametrize("kind", every_kind(jnp.ones((16, CLASSES))))
def test_any_callable_is_an_argument_of_a_compiled_program(kind, weights, images):
    function = every_kind(weights)[kind]
    made = as_logits_fn(function)
    expected = jnp.tanh(linear(weights, images)) if kind == "mixed" else linear(weights, images)
    np.testing.assert_allclose(jax.jit(lambda f, x: f(x))(made, images), expected, rtol=1e-5)
    assert as_logits_fn(made) is made
    assert check_logits(function, SHAPE, 5, CLASSES) == CLASSES
    hidden = kind in ("module", "lambda", "object", "method")
    assert [leaf.shape for leaf in jax.tree.leaves(made)] == ([] if hidden else [(16, CLASSES)])


def test_equal_callables_share_a_compilation_and_other_weights_are_never_mistaken(weights, images):
    traces = []

    @jax.jit
    def run(function, x):
        traces.append(1)
        return function(x)

    first, second = every_kind(weights), every_kind(2 * weights)
    for kind, compilations in (("partial", 1), ("functools", 0), ("struct", 1), ("mixed", 1), ("nnx", 1)):
        traces.clear()
        one, two = run(as_logits_fn(first[kind]), images), run(as_logits_fn(second[kind]), images)
        assert len(traces) == compilations and not np.allclose(one, two), kind
    hidden = Plain(weights)
    for read in (lambda: hidden, lambda: hidden.forward):
        traces.clear()
        hidden.weights = weights
        one, again = (run(as_logits_fn(read()), images) for _ in range(2))
        assert len(traces) == 1
        hidden.weights = 2 * weights
        np.testing.assert_allclose(run(as_logits_fn(read()), images), 2 * one, rtol=1e-5)
        np.testing.assert_array_equal(one, again)


def test_static_leaves_tell_callables_apart(weights):
    kinds = [Mixed(weights, jnp.tanh, power, "a") for power in (1, 2, 1.0, True)]
    structures = [jax.tree.structure(as_logits_fn(kind)) for kind in kinds]
    assert len(set(structures)) == 4
    same = jax.tree.structure(as_logits_fn(Mixed(2 * weights, jnp.tanh, 1, "a")))
    assert same == structures[0] and hash(same) == hash(structures[0])


def test_the_products_own_classifiers_stay_as_they_are():
    module = models.build("vit", image_size=8, patch_size=4, depth=1, width=8, heads=1, channels=1, num_classes=4)
    made = models.logits_fn(module, models.init(module, jax.random.key(0)))
    assert as_logits_fn(made) is made and check_logits(made, (8, 8, 1)) == 4


REFUSED = {
    "tuple": (lambda x: (x[:, 0, 0], x), r"= a tuple of 2 \(float32\[2, 1\], float32\[2, 4, 4, 1\]\): must be one"),
    "none": (lambda x: None, "= None: must be one float array of logits"),
    "dictionary": (lambda x: {"logits": x}, "= a dict: must be one float array of logits"),
    "complex": (lambda x: x[:, 0, :, 0] + 0j, "logits.dtype = 'complex64': must be a real float"),
    "integer": (lambda x: jnp.round(x[:, 0, :, 0]).astype(int), "logits.dtype = 'int32': must be a real float"),
    "rank": (lambda x: x[:, 0], r"logits.shape = \(2, 4, 1\): must be \(2, K\)"),
    "broadcasting": (lambda x: x[:1, 0, :, 0], r"logits.shape = \(1, 4\): must be \(2, K\)"),
    "one more": (lambda x: jnp.zeros((x.shape[0] + 1, 4)), r"logits.shape = \(3, 4\): must be \(2, K\)"),
    "one class": (lambda x: x[:, 0, 0], r"logits.shape = \(2, 1\): must be \(2, K\) with K at least 4"),
    "few classes": (lambda x: x[:, 0, :3, 0], r"with K at least 4, the classes of the data"),
    "numpy": (lambda x: np.asarray(x).mean((1, 2)), "is not traceable by JAX .*gradient-free suites"),
    "branching": (lambda x: x if x.mean() > 0 else -x, "is not traceable by JAX .*gradient-free suites"),
    "raising": (lambda x: x.detach(), "fails with AttributeError: .*detach.*gradient-free suites"),
    "other size": (lambda x: linear(jnp.zeros((7, 4)), x), r"logits_fn\(images float32\[2, 4, 4, 1\]\): fails with"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_returns_no_logits_is_told_in_one_line(name):
    function, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        check_logits(function, SHAPE, num_classes=4)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_called_is_told():
    with pytest.raises(ValueError, match=r"logits_fn = \{'params': 1\}: must be callable"):
        as_logits_fn({"params": 1})


def test_a_numpy_function_runs_inside_a_compiled_program(weights, images):
    plain = np.asarray(weights)

    def by_numpy(x):
        assert isinstance(x, np.ndarray)
        return np.reshape(x, (len(x), -1)) @ plain

    assert not is_traceable(by_numpy, SHAPE)
    hosted = on_host(by_numpy, CLASSES)
    assert check_logits(hosted, SHAPE, 5) == CLASSES and is_traceable(hosted, SHAPE)
    np.testing.assert_allclose(jax.jit(lambda f, x: f(x))(hosted, images), linear(weights, images), atol=1e-6)
    assert jax.tree.structure(hosted) == jax.tree.structure(on_host(by_numpy, CLASSES))
    batches = [{"image": np.asarray(images), "label": np.asarray(linear(weights, images).argmax(-1))}]
    assert Measurer().measure(hosted, batches).accuracy == 1.0
    with pytest.raises(Exception, match=r"logits.shape = \(5, 3\): must be \(5, 4\)"):
        jax.block_until_ready(on_host(by_numpy, 4)(images))


def test_autoattack_takes_any_callable(weights, images):
    """The same figures from a lambda and a struct; what is no classifier is told at once."""
    examples = {"images": np.asarray(images), "labels": np.asarray(linear(weights, images).argmax(-1))}
    threat = {"norm": "linf", "epsilon": 0.05, "version": "quick", "budget": 0.2}
    kinds = every_kind(weights)
    found = [autoattack(kinds[kind], **examples, **threat) for kind in ("lambda", "struct")]
    assert all(list(result.status) == list(found[0].status) for result in found)
    refused = {
        "logits.dtype = 'int32'": (lambda x: jnp.argsort(linear(weights, x)), {}),
        "logits.shape = (1, 3): must be (": (lambda x: linear(weights, x)[:1], {}),
        "is not traceable by JAX": (lambda x: np.asarray(x), {}),
        "labels = 3: must be in [0, 3)": (kinds["struct"], {"labels": np.full(5, 3)}),
        "labels = -1: must be in [0, 3)": (kinds["struct"], {"labels": np.full(5, -1)}),
        "images = '[": (kinds["struct"], {"images": 255 * examples["images"]}),
        "seed = 9223372036854775808": (kinds["struct"], {"seed": 2**63}),
        "epsilon = nan": (kinds["struct"], {"epsilon": np.nan}),
        "budget = nan": (kinds["struct"], {"budget": np.nan}),
    }
    for message, (function, changes) in refused.items():
        with pytest.raises(ValueError) as caught:
            autoattack(function, **{**examples, **threat, **changes})
        assert message in str(caught.value) and "\n" not in str(caught.value)
