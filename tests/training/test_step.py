"""The training step: averages, accumulation, guards, modes of BatchNorm, one all-reduce, any number of devices."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robust_vit import attacks, models, objectives, parallel
from robust_vit.models.parts import layers
from robust_vit.training import optimizer, state, step

SHAPE, CLASSES, SIZE = (8, 8, 1), 10, 16


@functools.cache
def module():
    return models.build(
        "vit", image_size=8, channels=1, patch_size=4, width=16, depth=1, heads=2, num_classes=CLASSES, pooling="mean"
    )


class Normalised(nn.Module):
    """A model with BatchNorm: what the modes differ on."""

    drop_path: float = 0.0

    @nn.compact
    def __call__(self, images, train=False):
        x = layers.Dense(8)(images.reshape(len(images), -1))
        x = layers.BatchNorm()(x, train)
        return layers.Dense(CLASSES)(jnp.tanh(x))


def batch(size=SIZE, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (size, *SHAPE), dtype=np.uint8),
        "label": rng.integers(0, CLASSES, size, dtype=np.int32),
        "index": np.arange(size, dtype=np.int32),
    }


def build(model=None, objective="adversarial", optimizer_name="adamw", **keywords):
    model = model or module()
    tx = optimizer.build(optimizer_name, weight_decay=0.1)
    attack = attacks.pgd(norm="linf", epsilon=0.1, step_size=0.05, steps=2, keep="last")
    made = step.make(model, objectives.build(objective), attack, tx, num_classes=CLASSES, seed=0, **keywords)
    start = state.create(model, tx, SHAPE, 0, keywords.get("ema_decay", 0) > 0)
    return made, start


@pytest.fixture(scope="module")
def runs():
    """Three steps of the same training on 1, 2 and 8 devices, with the compiled program of each."""
    made, start = build()
    results = {}
    for devices in (1, 2, 8):
        mesh = parallel.mesh(devices)
        compiled = parallel.compile(made, mesh, arguments="rbrr", results="rr", donate=(0,))
        current, losses = parallel.replicate(mesh, start), []
        for number in range(3):
            placed = parallel.global_batch(mesh, batch(seed=number))
            if not losses:
                text = compiled.lower(current, placed, np.float32(0.01), np.float32(1.0)).compile().as_text()
            current, metrics = compiled(current, placed, np.float32(0.01), np.float32(1.0))
            losses.append(float(metrics["loss"]))
        results[devices] = losses, jax.device_get(current.params), text
    return results


def test_any_number_of_devices_gives_the_same_losses(runs):
    for devices in (2, 8):
        np.testing.assert_allclose(runs[devices][0], runs[1][0], rtol=2e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), runs[devices][1], runs[1][1])


def test_exactly_one_all_reduce_a_step(runs):
    reduces = re.findall(r"= .*all-reduce(?:-start)?\(", runs[8][2])
    assert len(reduces) == 1, reduces
    assert not re.search(r"all-gather|all-to-all|collective-permute|reduce-scatter", runs[8][2])
    assert "all-reduce" not in runs[1][2]


def test_learning_rate_and_strength_do_not_recompile():
    made, start = build()
    mesh = parallel.mesh(1)
    traces = []

    def counted(*arguments):
        traces.append(1)
        return made(*arguments)

    compiled = parallel.compile(counted, mesh, arguments="rbrr", results="rr")
    placed = parallel.global_batch(mesh, batch())
    losses = {float(compiled(start, placed, np.float32(r), np.float32(s))[1]["loss"]) for r, s in ((0.1, 0), (0.2, 1))}
    assert len(traces) == 1 and len(losses) == 2


def test_the_step_descends():
    made, start = build(objective="trades")
    compiled, losses = jax.jit(made), []
    for _ in range(30):
        start, metrics = compiled(start, batch(), jnp.float32(0.01), jnp.float32(1.0))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.7 * losses[0]


def test_accumulation_equals_the_whole_batch():
    whole, start = build(optimizer_name="sgd")
    parts, _ = build(optimizer_name="sgd", accumulation=4)
    arguments = batch(), jnp.float32(0.1), jnp.float32(1.0)
    one, metrics = jax.jit(whole)(start, *arguments)
    four, more = jax.jit(parts)(start, *arguments)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one.params, four.params)
    np.testing.assert_allclose(metrics["loss"], more["loss"], rtol=1e-6)
    assert metrics["robust_correct"] == more["robust_correct"]


@pytest.mark.parametrize(
    ("name", "looked_at"), [("standard", {"clean"}), ("adversarial", {"robust"}), ("trades", {"clean", "robust"})]
)
def test_metrics_are_of_what_the_objective_looked_at(name, looked_at):
    made, start = build(Normalised(), objective=name, accumulation=2)
    metrics = {}
    jax.eval_shape(lambda *given: metrics.update(made(*given)[1]), start, batch(), jnp.float32(0.1), jnp.float32(1.0))
    assert {key.removesuffix("_correct") for key in metrics if key.endswith("_correct")} == looked_at
    assert metrics["attacked"] is (name != "standard")


def test_a_model_shows_its_heads_to_the_objective_that_asks():
    images = jnp.asarray(batch()["image"] / 255.0, jnp.float32)
    single = module().init(jax.random.key(0), images)["params"]
    z, _ = step.training_forward(module(), single, jax.random.key(1))(images, {}, heads=True)
    assert z.shape == (SIZE, 1, CLASSES)
    pair = module().clone(pooling="token", distilled=True)
    forward = step.training_forward(pair, pair.init(jax.random.key(0), images)["params"], jax.random.key(1))
    both, mean = forward(images, {}, heads=True)[0], forward(images, {})[0]
    assert both.shape == (SIZE, 2, CLASSES) and not np.allclose(both[:, 0], both[:, 1])
    np.testing.assert_allclose(both.mean(1), mean, atol=1e-6)


def test_a_step_that_is_not_finite_leaves_the_state_and_says_so():
    made, start = build(ema_decay=0.9)
    bad = batch() | {"image": np.full((SIZE, *SHAPE), np.nan, np.float32)}
    after, metrics = jax.jit(made)(start, bad, jnp.float32(0.1), jnp.float32(1.0))
    assert not metrics["finite"] and after.step == 0
    jax.tree.map(np.testing.assert_array_equal, after.params, start.params)
    good, metrics = jax.jit(made)(start, batch(), jnp.float32(0.1), jnp.float32(1.0))
    assert metrics["finite"] and good.step == 1


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_an_update_that_is_not_finite_is_not_taken_although_loss_and_gradient_are(name):
    made, start = build(ema_decay=0.9, optimizer_name=name)
    after, metrics = jax.jit(made)(start, batch(), jnp.float32(jnp.inf), jnp.float32(1.0))
    assert jnp.isfinite(metrics["loss"]) and jnp.isfinite(metrics["gradient_norm"])
    assert not metrics["finite"] and after.step == 0
    jax.tree.map(np.testing.assert_array_equal, after, start)


def test_a_state_whose_average_or_statistics_are_not_finite_is_not_kept():
    made, start = build(Normalised(), ema_decay=0.9)
    arguments = batch(), jnp.float32(0.1), jnp.float32(1.0)
    compiled = jax.jit(made)
    assert compiled(start, *arguments)[1]["finite"]
    for field in ("average", "batch_stats"):
        spoilt = jax.tree.map(lambda x: jnp.full_like(x, jnp.inf), getattr(start, field))
        after, metrics = compiled(start.replace(**{field: spoilt}), *arguments)
        assert jnp.isfinite(metrics["gradient_norm"]) or field == "batch_stats"
        assert not metrics["finite"] and after.step == 0


def test_the_average_follows_its_formula():
    made, current = build(ema_decay=0.9)
    average = current.average["params"]
    for t in range(3):
        current, _ = jax.jit(made)(current, batch(), jnp.float32(0.1), jnp.float32(1.0))
        d = min(0.9, (1 + t) / (10 + t))
        average = jax.tree.map(lambda a, w, d=d: d * a + (1 - d) * w, average, current.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), current.average["params"], average)
    assert current.variables("ema")["params"] is current.average["params"]


def test_weights_without_an_average_cannot_be_asked_for():
    _, start = build()
    with pytest.raises(ValueError, match="weights = 'ema': this run kept no average"):
        start.variables("ema")


def test_batch_norm_running_averages_move_only_in_training_passes():
    made, start = build(Normalised(), objective="adversarial")
    assert jax.tree.leaves(start.batch_stats)
    after, _ = jax.jit(made)(start, batch(), jnp.float32(0.1), jnp.float32(1.0))
    moved = [
        not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(start.batch_stats), jax.tree.leaves(after.batch_stats))
    ]
    assert all(moved)


@pytest.mark.parametrize("mode", ["running", "batch"])
def test_the_attack_sees_the_statistics_it_is_told_to(mode):
    model = Normalised()
    images = jnp.asarray(batch()["image"] / 255.0, jnp.float32)
    variables = model.init(jax.random.key(0), images)
    view = step.adversary_view(model, variables["params"], variables["batch_stats"], mode)
    expected = model.apply(variables, images)
    if mode == "batch":
        expected, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(view(images), expected, atol=1e-6)


def test_drop_path_draws_anew_in_each_pass_of_a_step():
    model = module().clone(drop_path=0.5, depth=2)
    params = model.init(jax.random.key(0), jnp.zeros((1, *SHAPE)))["params"]
    forward = step.training_forward(model, params, jax.random.key(1))
    images = jnp.asarray(batch()["image"] / 255.0, jnp.float32)
    first, _ = forward(images, {})
    second, _ = forward(images, {})
    assert not np.allclose(first, second)


def test_weight_decay_spares_biases_norms_tokens_and_positions():
    model = models.build(
        "vit", image_size=8, channels=1, patch_size=4, width=16, depth=2, heads=2, num_classes=3, scan=True
    )
    params = model.init(jax.random.key(0), jnp.zeros((1, *SHAPE)))["params"]
    marked = jax.tree_util.tree_leaves_with_path(optimizer.decays(params))
    decayed = {path[-1].key for path, yes in marked if yes}
    spared = {path[-1].key for path, yes in marked if not yes}
    assert decayed == {"kernel"} and {"bias", "scale", "cls_token", "pos_embed"} <= spared


@pytest.mark.parametrize(("name", "direction"), [("adamw", 1.0 + 0.1 * 2.0), ("sgd", (1 + 0.9) * (0.5 + 0.1 * 2.0))])
def test_first_update_by_hand(name, direction):
    tx = optimizer.build(name, weight_decay=0.1)
    params = {"kernel": jnp.array([2.0])}
    updates, _ = tx.update({"kernel": jnp.array([0.5])}, tx.init(params), params)
    assert updates["kernel"][0] == pytest.approx(direction, rel=1e-5)


def test_clipping_bounds_the_global_norm():
    tx = optimizer.build("sgd", clip_norm=1.0)
    params = {"kernel": jnp.zeros(4)}
    updates, _ = tx.update({"kernel": jnp.full(4, 10.0)}, tx.init(params), params)
    assert optax.tree.norm(updates) == pytest.approx(1.9, rel=1e-5)  # Nesterov's first step is 1 + 0.9
