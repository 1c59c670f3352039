"""SparseViT: which windows are kept, the gathered and the masked form, and sparsity-aware adaptation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_vit import models
from robust_vit.models.families import sparsevit
from robust_vit.models.parts import windowing

FIELDS = dict(depths=(4, 1), width=8, heads=(2, 2), patch_size=1, window_size=4, image_size=16, num_classes=5)
IMAGES = jax.random.uniform(jax.random.key(7), (2, 16, 16, 3))
RATIOS = ((0.0, 0.3, 0.5, 0.95), (0.2,))  # of 16 windows: 16, 11, 8, 0; of 4 windows: 3


@pytest.fixture(scope="module")
def variables():
    tree = models.init(models.build("sparse_swin", **FIELDS), jax.random.key(0))
    return jax.tree.map(lambda x: x + 0.3 * jnp.sin(jnp.arange(x.size)).reshape(x.shape), tree)


def sparse(**fields):
    return models.build("sparse_swin", **{**FIELDS, **fields})


def run(module, variables):
    return jax.jit(module.apply)(variables, IMAGES)


def gradients(f, variables):
    return jax.jit(jax.value_and_grad(lambda v, x: jnp.sin(f(v, x)).sum(), argnums=(0, 1)))(variables, IMAGES)


@pytest.mark.parametrize(
    "windows, ratio, count", [(64, 0.6, 25), (4, 0.3, 2), (4, 0.8, 0), (1, 0.1, 0), (1, 0.0, 1), (16, 0.3, 11)]
)
def test_number_of_kept_windows_rounds_as_released(windows, ratio, count):
    assert sparsevit.kept(windows, ratio) == count


def test_rank_orders_windows_by_the_norm_of_mean_activation():
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    rolled = np.abs(np.roll(x, (-2, -2), (1, 2))).mean(-1)
    scores = [[np.linalg.norm(image[i : i + 4, j : j + 4]) for i in (0, 4) for j in (0, 4)] for image in rolled]
    np.testing.assert_array_equal(sparsevit.rank(jnp.asarray(x), (4, 4), (2, 2)), np.argsort(-np.array(scores)))


def test_without_ratios_it_is_swin(variables):
    dense = models.build("swin", **FIELDS)
    expected = run(dense, variables)
    for module in (sparse(), sparse(ratios=((0,) * 4, (0,)))):
        np.testing.assert_allclose(run(module, variables), expected, atol=1e-6)


@pytest.mark.slow
def test_gathered_and_masked_forms_agree_in_values_and_gradients(variables):
    module = sparse(ratios=RATIOS)
    keep = tuple(
        jnp.array([sparsevit.kept(windows, ratio) for ratio in stage])
        for windows, stage in zip(module.windows, RATIOS, strict=True)
    )
    assert [list(map(int, k)) for k in keep] == [[16, 11, 8, 0], [3]]
    gathered = gradients(module.apply, variables)
    masked = gradients(lambda v, x: module.apply(v, x, keep=keep), variables)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), gathered, masked)
    assert float(jnp.abs(gathered[0] - jnp.sin(run(sparse(), variables)).sum())) > 1e-3  # pruning does something


def test_dropped_windows_pass_unchanged(variables):
    module = sparse(ratios=((0.0, 0.0, 0.5, 0.5), (0.0,)))
    _, captured = jax.jit(lambda v, x: models.capture(module, v, x, ["tokens"]))(variables, IMAGES)
    before, after = captured["tokens"][1:3]  # an unshifted block
    order = np.asarray(sparsevit.rank(before, (4, 4), (0, 0)))
    changed = np.abs(np.asarray(windowing.partition(after - before, (4, 4)))).max((2, 3)) > 0
    for image in range(2):
        assert changed[image, order[image, :8]].all() and not changed[image, order[image, 8:]].any()


def test_images_choose_for_themselves(variables):
    module = sparse(ratios=RATIOS)
    apply = jax.jit(module.apply)
    together, twice = apply(variables, IMAGES), apply(variables, IMAGES[jnp.array([1, 1])])
    np.testing.assert_allclose(together[1], twice[0], atol=1e-5)
    np.testing.assert_allclose(twice[0], twice[1], atol=1e-5)


def test_ratios_may_come_as_lists_and_the_parameters_are_those_of_swin():
    module = models.build("sparse_swin", **FIELDS, ratios=[list(stage) for stage in RATIOS])
    assert module == sparse(ratios=RATIOS) and hash(module) == hash(sparse(ratios=RATIOS))
    shapes = [
        jax.tree.map(jnp.shape, jax.eval_shape(m.init, jax.random.key(0), IMAGES))
        for m in (module, models.build("swin", **FIELDS))
    ]
    assert shapes[0] == shapes[1]


def test_sampled_counts_fall_inside_a_stage_and_come_in_pairs():
    draw = jax.jit(lambda key: sparsevit.sample_keep(key, (6, 3), (64, 16)))
    allowed = {sparsevit.kept(64, ratio) for ratio in sparsevit.LEVELS}
    seen = set()
    for seed in range(20):
        first, second = (np.asarray(k) for k in draw(jax.random.key(seed)))
        assert first.shape == (6,) and second.shape == (3,)
        assert (np.diff(first) <= 0).all() and (np.diff(second) <= 0).all()
        np.testing.assert_array_equal(first[::2], first[1::2])
        seen |= set(first.tolist())
    assert seen == allowed


def test_adaptation_draws_ratios_at_every_training_step_and_compiles_once(variables):
    module = sparse(adapt=True)
    traces = []

    @jax.jit
    def step(variables, key):
        traces.append(None)
        return module.apply(variables, IMAGES, train=True, rngs={"dropout": key})

    losses = {float(step(variables, jax.random.key(seed)).sum()) for seed in range(4)}
    assert len(losses) > 1 and len(traces) == 1
    np.testing.assert_array_equal(run(module, variables), run(sparse(), variables))


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(ratios=((0.1,), (0.1,))), "each block of each stage"),
        (dict(ratios=((0.5, 0.5, 0.1, 0.1), (0,))), "not falling"),
        (dict(ratios=((0, 0, 0, 1.0), (0,))), r"in \[0, 1\)"),
        (dict(image_size=20), "divisor of every stage's grid"),
        (dict(scan=True), "scan = True"),
    ],
)
def test_errors_name_the_field(fields, message):
    with pytest.raises(ValueError, match=message):
        sparse(**fields)
