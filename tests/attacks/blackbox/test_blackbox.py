"""Black-box attacks count what they ask, end where they may ask no more, and get where decisions alone can lead."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_vit import attacks
from robust_vit.attacks import blackbox, norms
from robust_vit.evaluation import intervals, suites
from robust_vit.evaluation.query_curve import QueryCurve

HUNTS = {
    "nes": (dict(norm="linf", steps=6, pairs=6), "linf", 0.1),
    "square": (dict(norm="linf", queries=40), "linf", 0.1),
    "boundary": (dict(steps=150), "l2", 1.5),
    "hop_skip_jump": (dict(norm="l2", steps=4, evaluations=15), "l2", 1.5),
}


class Network:
    """The tiny model in NumPy, which JAX cannot trace; notes every image that it is shown."""

    def __init__(self, logits_fn):
        self.weights, self.shown = jax.tree.map(np.asarray, logits_fn.args[0]), 0

    def __call__(self, images):
        self.shown += len(images)
        x = np.asarray(images).reshape(len(images), -1) - 0.5
        return 4.0 * np.tanh(x @ self.weights["in"]) @ self.weights["out"]


@pytest.mark.parametrize("name", ["nes", *(pytest.param(n, marks=pytest.mark.slow) for n in HUNTS if n != "nes")])
def test_what_is_asked_is_counted_and_the_last_query_ends_it_with_the_best_found(name, problem):
    keywords, norm, epsilon = HUNTS[name]
    keys, logits_fn, images, labels = problem()
    hunt = jax.jit(blackbox.hunt(name, **keywords))
    radius = jnp.full(4, epsilon)
    free = hunt(keys, logits_fn, images, labels, radius)
    fell = np.isfinite(free.queries)
    assert fell.any() and np.all(np.argmax(logits_fn(free.points), -1)[fell] != labels[fell])
    assert np.all(norms.get(norm).distance(free.points, images) <= epsilon * (1 + 1e-5))

    keys, *_ = problem()
    victim = blackbox.Victim(network := Network(logits_fn), num_classes=5)
    same = hunt(keys, victim.logits_fn, images, labels, radius)
    np.testing.assert_array_equal(same.queries, free.queries)
    assert victim.queries == network.shown and victim.refused == 0
    assert victim.queries >= 4 * free.queries[fell].max()

    keys, *_ = problem()
    limit = int(4 * np.sort(free.queries[fell])[0])  # enough for the first to fall
    poor = blackbox.Victim(network := Network(logits_fn), num_classes=5, limit=limit)
    found = hunt(keys, poor.logits_fn, images, labels, radius)
    assert poor.queries == network.shown == limit and poor.queries + poor.refused <= victim.queries
    held = np.isfinite(found.queries)
    assert 1 <= held.sum() <= fell.sum() and np.all(found.queries[held] <= limit / 4)
    np.testing.assert_array_equal(found.queries[held], free.queries[held])
    np.testing.assert_array_equal(found.points[~held], images[~held])


def test_a_victim_says_classes_or_logits_and_what_it_cannot_be(problem):
    _, logits_fn, images, _ = problem()
    network = Network(logits_fn)
    classes = blackbox.Victim(lambda x: network(x).argmax(-1), num_classes=5)
    np.testing.assert_array_equal(np.argmax(classes(images), -1), np.argmax(logits_fn(images), -1))
    np.testing.assert_array_equal(jax.jit(lambda x: classes.logits_fn(x))(images).sum(-1), 1.0)
    for arguments, message in [
        ((network, 5, 0), "limit = 0: must be a whole number, at least 1"),
        ((network, 1), "num_classes = 1"),
        ((3, 5), "function = 'int': must be callable"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            blackbox.Victim(*arguments)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"victim's answer = \(4, 5\): must be \(4, 7\)"):
        blackbox.Victim(network, 7)(images)


def affine(weights, images):
    value = images.reshape(len(images), -1) @ weights - 0.3
    return jnp.stack([value, -value], -1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, norm, order, factor",
    [
        ("hop_skip_jump", "l2", 2, 1.3),
        ("hop_skip_jump", "linf", 1, 1.8),
        ("boundary", "l2", 2, 1.6),
    ],
)
def test_decisions_lead_near_the_nearest_point(name, norm, order, factor):
    """The distance to a hyperplane, from classes alone."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=27)
    w -= w.mean()
    images = jnp.asarray(0.5 + 0.1 * rng.uniform(-1, 1, (4, 3, 3, 3)), jnp.float32)
    logits_fn = jax.tree_util.Partial(affine, jnp.asarray(w, jnp.float32))
    labels = jnp.argmax(logits_fn(images), -1)
    exact = np.abs(np.asarray(images, np.float64).reshape(4, -1) @ w - 0.3) / np.linalg.norm(w, ord=order)
    steps = {"hop_skip_jump": 15, "boundary": 1500}[name]
    hunt = jax.jit(blackbox.hunt(name, norm=norm, steps=steps))
    keys = jax.random.split(jax.random.key(0), 4)
    near = hunt(keys, logits_fn, images, labels, jnp.asarray(factor * exact, jnp.float32))
    assert np.isfinite(near.queries).sum() >= 3
    nothing = hunt(jax.random.clone(keys), logits_fn, images, labels, jnp.asarray(0.99 * exact, jnp.float32))
    assert np.all(np.isinf(nothing.queries))


@pytest.mark.slow
def test_signs_and_normals_estimate_the_gradient(problem):
    """SPSA and NES go about where PGD goes: both break what PGD breaks in a ball of that size."""
    keys, logits_fn, images, labels = problem()
    for name in ("nes", "spsa"):
        keys, *_ = problem()
        attack = attacks.build(name, norm="l2", epsilon=1.2, steps=10, pairs=15)
        found = jax.jit(attack)(keys, logits_fn, images, labels)
        before, after = (attacks.losses.margin(logits_fn(x), labels) for x in (images, found))
        assert np.all(after >= before) and (after > 0).sum() >= 2


def test_a_student_of_the_victims_answers_is_a_surrogate(problem):
    """Images made on the student fool the victim more than noise, and every answer is paid for."""
    _, logits_fn, images, labels = problem((40, 6, 5, 3), classes=3)
    victim = blackbox.Victim(Network(logits_fn), num_classes=3)

    def student(weights, x):
        return (x.reshape(len(x), -1) - 0.5) @ weights

    given = dict(rounds=3, epochs=30, batch_size=20, learning_rate=0.01)
    found = blackbox.substitute(victim, student, jnp.zeros((90, 3)), images, **given)
    assert (found.queries, found.answered, victim.queries) == (160, 160, 160)
    assert found.agreement > 0.9
    made = jax.jit(attacks.transfer(epsilon=0.1, steps=3))(0, found.logits_fn, images, labels)
    noise = norms.linf_start(jax.random.split(jax.random.key(1), 40), images, 0.1)
    wrong = [(np.argmax(logits_fn(x), -1) != labels).mean() for x in (made, noise)]
    assert wrong[0] > wrong[1] + 0.2
    poor = blackbox.substitute(
        blackbox.Victim(Network(logits_fn), 3, limit=50), student, jnp.zeros((90, 3)), images, **given
    )
    assert (poor.queries, poor.answered) == (160, 50)
    with pytest.raises(ValueError, match="student's classes = 4: must be 3, the victim's"):
        blackbox.substitute(victim, student, jnp.zeros((90, 4)), images)


def test_the_curve_counts_what_stands():
    curve = QueryCurve(np.arange(5), np.array([0.0, 3.0, 3.0, 10.0, np.inf]))
    assert [curve.accuracy(q) for q in (0, 2, 3, 10, 1e9)] == [0.8, 0.8, 0.4, 0.2, 0.2]
    assert curve.interval(3) == intervals.wilson(2, 5) and curve.median == 3.0


def test_the_suite_measures_a_numpy_function(problem):
    _, logits_fn, images, labels = problem((10, 6, 5, 3))
    data = {"image": np.asarray(images), "label": np.array(labels, np.int32), "index": np.arange(10)}
    data["label"][3] = (data["label"][3] + 1) % 5
    batches = [{key: value[i : i + 5] for key, value in data.items()} for i in (0, 5)]
    context = suites.Context(Network(logits_fn), lambda: batches, threat="linf-0.1", options={"blackbox_queries": 100})
    entry = suites.run_suites("blackbox", context)["blackbox"]
    assert entry["curve"][0] == {"queries": 0, "accuracy": 0.9, "interval": list(intervals.wilson(9, 10))}
    falling = [point["accuracy"] for point in entry["curve"]]
    assert falling == sorted(falling, reverse=True) and entry["accuracy"] <= falling[-1] < 0.9
    wrong = suites.Context(
        Network(logits_fn), lambda: batches, threat="linf-0.1", options={"blackbox_attack": "boundary"}
    )
    with pytest.raises(ValueError, match="norm = 'linf': must be 'l2' for boundary"):
        suites.run_suites("blackbox", wrong)


@pytest.mark.parametrize(
    "name, keywords, field",
    [
        ("nes", {"pairs": 0}, "pairs = 0"),
        ("nes", {"sigma": 0.0}, "sigma = 0.0"),
        ("nes", {"directions": "sign"}, "directions = 'sign'"),
        ("hop_skip_jump", {"norm": "l1"}, "norm = 'l1'"),
        ("hop_skip_jump", {"evaluations": 0}, "evaluations = 0"),
        ("boundary", {"steps": 0}, "steps = 0"),
    ],
)
def test_bad_keywords_are_one_line(name, keywords, field):
    with pytest.raises(ValueError) as error:
        attacks.build(name, epsilon=0.1, **keywords)
    assert str(error.value).startswith(field) and "\n" not in str(error.value)
