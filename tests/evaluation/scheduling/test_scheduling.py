"""Continuous batching: every item is run or provably needless, in any tile, window and order, and nothing compiles
twice.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawing import examples
from hypothesis import given
from hypothesis import strategies as st

from robust_vit import parallel
from robust_vit.evaluation.points import Chain, Points
from robust_vit.evaluation.scheduling import scheduler, tile
from robust_vit.evaluation.scheduling.scheduler import schedule
from robust_vit.evaluation.scheduling.slots import IDLE, SlotTable


@flax.struct.dataclass
class ToyState:
    key: jax.Array
    images: jax.Array
    labels: jax.Array
    epsilon: jax.Array
    tick: jax.Array
    adversarial: jax.Array
    broken: jax.Array
    done: jax.Array
    non_finite: jax.Array


@dataclasses.dataclass(frozen=True)
class Toy:
    """Random search: a fresh corner of the ball at every tick, until the model errs."""

    steps: int = 4

    def start(self, keys, logits_fn, images, labels, target, epsilon, restart=0):
        none = jnp.zeros(len(labels), bool)
        return ToyState(jax.random.key_data(keys), images, labels, epsilon, 0 * labels, images, none, none, none)

    def advance(self, logits_fn, state, ticks):
        def tick(_, s):
            keys = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(s.key), s.tick)
            signs = jax.vmap(lambda k, x: jax.random.rademacher(k, x.shape, x.dtype))(keys, s.images)
            point = jnp.clip(s.images + s.epsilon[:, None, None, None] * signs, 0, 1)
            wrong = (logits_fn(point).argmax(-1) != s.labels) & ~s.done
            adversarial = jnp.where(wrong[:, None, None, None], point, s.adversarial)
            number = s.tick + ~s.done
            broken = s.broken | wrong
            return s.replace(tick=number, adversarial=adversarial, broken=broken, done=broken | (number >= self.steps))

        return jax.lax.fori_loop(0, ticks, tick, state)


def linear(weights, images):
    return images.reshape(len(images), -1) @ weights


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    images = rng.uniform(0.2, 0.8, (23, 3, 4, 2)).astype(np.float32)
    weights = jnp.asarray(rng.normal(size=(24, 3)), jnp.float32)
    logits_fn = jax.tree_util.Partial(linear, weights)
    labels = np.asarray(logits_fn(images).argmax(-1))
    points = Points(images, labels, np.full(23, 0.12, np.float32), np.arange(100, 123))
    return logits_fn, points


def chain(points, restarts=3):
    count = len(points.labels)
    return Chain(np.arange(restarts), np.zeros(restarts, int), np.full((count, restarts), -1), code=1)


def run(problem, rows=None, *, accept=lambda rows: [""] * len(rows), items=3, faults=None, **keywords):
    """{row: (first item that broke it or None, image)} and the tally."""
    logits_fn, points = problem
    found, seen = {}, []

    def report(row, item, status, ticks, image):
        seen.append((row, item))
        if status not in ("broken", "survived"):
            faults[row, item] = status
        if status == "broken" and item < found.get(row, (99,))[0]:
            found[row] = item, image

    rows = range(len(points.labels)) if rows is None else rows
    keywords = {"slots": 8, "chunk": 3, "examine": lambda rows, images: accept(rows), "on_outcome": report, **keywords}
    tally = schedule(Toy(), logits_fn, points, list(rows), chain(points, items), seed=5, **keywords)
    assert len(seen) == len(set(seen))
    return found, tally


def plain(problem, items=3):
    """The same search without a schedule: every item of every point, all at once."""
    logits_fn, points = problem
    found = {}
    for item in reversed(range(items)):
        ones = np.ones(len(points.labels), np.uint32)
        keys = tile.item_keys(jax.random.key(5), ones, points.indices, item * ones, 0 * ones)
        state = Toy().start(
            keys, logits_fn, points.images, jnp.asarray(points.labels), None, jnp.asarray(points.epsilon)
        )
        state = Toy().advance(logits_fn, state, 4)
        for row in np.flatnonzero(state.broken):
            found[row] = item, np.asarray(state.adversarial[row])
    return found


def assert_same(found, expected):
    assert {row: item for row, (item, _) in found.items()} == {row: item for row, (item, _) in expected.items()}
    for row, (_, image) in found.items():
        np.testing.assert_allclose(image, expected[row][1], atol=1e-6)


def test_agrees_with_the_attack_without_a_schedule(problem):
    expected = plain(problem)
    assert 3 < len(expected) < 20  # the problem has points of both kinds, or the test is void
    assert len({item for item, _ in expected.values()}) > 1
    found, tally = run(problem)
    assert_same(found, expected)
    assert tally.ticks <= tally.slot_ticks


BACKWARDS = list(range(22, -1, -1))


@pytest.mark.parametrize("keywords", [{"window": 1}, {"window": 4}, {"slots": 16}, {"chunk": 1}, {"rows": BACKWARDS}])
def test_order_and_tiling_change_nothing(problem, keywords):
    assert_same(run(problem, **keywords)[0], run(problem)[0])


@pytest.mark.parametrize("devices", [2, 8])
def test_devices_change_nothing(problem, devices):
    assert_same(run(problem, slots=16, mesh=parallel.mesh(devices))[0], run(problem, slots=16)[0])


@pytest.mark.parametrize("lanes", [1, 3])
def test_the_number_of_tiles_in_flight_changes_nothing(problem, lanes, monkeypatch):
    expected = run(problem)[0]
    monkeypatch.setattr(scheduler, "LANES", lanes)
    assert_same(run(problem)[0], expected)


def test_what_a_report_raises_ends_the_schedule(problem):
    def interrupt(*outcome):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(problem, on_outcome=interrupt)


def test_known_items_are_not_run_again(problem):
    expected, tally = run(problem)
    known = {(row, item): item == first for row, (first, _) in expected.items() for item in range(first + 1)}
    found, resumed = run(problem, known=known)
    assert found == {}
    assert resumed.items < tally.items


def test_a_refused_claim_puts_the_point_back(problem):
    expected, calls, faults = plain(problem), [], {}

    def refuse_first(rows):
        calls.append(rows)
        return ["classified correctly" if len(calls) == 1 else "" for _ in rows]

    found, _ = run(problem, accept=refuse_first, faults=faults)
    assert {row for row, _ in faults} == set(calls[0])
    for row, (item, _) in expected.items():
        if (row, item) in faults:
            assert row not in found or found[row][0] > item
        else:
            assert found[row][0] == item


def test_nothing_compiles_twice(problem):
    run(problem)
    _, tally = run(problem, rows=[3, 9])
    assert tally.compile_seconds == 0.0


@examples(40)
@given(st.data())
def test_slots_run_every_item_that_counts_once(data):
    """Whatever ends when: each point's verdict is that of its lowest breaking item, and items before it all ran
    exactly once.
    """
    points, items = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 4))
    breaking = {row: data.draw(st.sets(st.integers(0, items - 1))) for row in range(points)}
    table = SlotTable(range(points), items, data.draw(st.integers(1, 7)), data.draw(st.integers(1, 9)), {})
    ran = []
    while True:
        for slot in table.useless():
            table.free(slot)
        table.refill()
        busy = np.flatnonzero(table.point != IDLE)
        if not len(busy):
            break
        for slot in data.draw(st.lists(st.sampled_from(list(busy)), min_size=1, unique=True)):
            row, item = int(table.point[slot]), int(table.item[slot])
            ran.append((row, item))
            table.settle(slot, item in breaking[row])
    assert len(ran) == len(set(ran))
    for row in range(points):
        first = min(breaking[row], default=None)
        assert table.verdict(row) is (first is not None)
        assert {(row, item) for item in range(items if first is None else first + 1)} <= set(ran)


@given(st.integers(1, 5000), st.sampled_from([8, 32, 64, 256]))
def test_balanced_tiles_waste_less_than_a_row_of_eight_a_round(work, slots):
    size = scheduler.balanced(work, slots)
    assert size <= slots and size % 8 == 0
    rounds = -(-work // size)
    assert rounds == -(-work // slots)
    assert rounds * size - work < 8 * rounds
