"""Schedules by hand-computed values."""

import math

import jax
import pytest

from robust_vit.training import schedules


def rate(name, **keywords):
    given = dict(learning_rate=1.0, total_steps=100, steps_per_epoch=10.0) | keywords
    return schedules.learning_rate(name, **given)


def test_cosine_goes_from_peak_to_final():
    at = rate("cosine", final_learning_rate=0.2)
    assert [at(0), at(50), at(100)] == pytest.approx([1.0, 0.6, 0.2])
    assert at(25) == pytest.approx(0.2 + 0.4 * (1 + math.cos(math.pi / 4)))


def test_warmup_rises_linearly_per_step_and_then_the_cosine_covers_the_rest():
    at = rate("cosine", warmup_epochs=1.0)
    assert [at(0), at(4), at(9), at(10)] == pytest.approx([1 / 11, 5 / 11, 10 / 11, 1.0])
    assert at(55) == pytest.approx(0.5)


def test_step_schedule_counts_epochs_from_the_start():
    at = rate("step", decay_every_epochs=3.0, decay_factor=0.1, warmup_epochs=1.0)
    assert [at(29), at(30), at(59), at(60)] == pytest.approx([1.0, 0.1, 0.1, 0.01])


def test_constant():
    assert rate("constant")(77) == 1.0


@pytest.mark.parametrize(
    ("name", "expected"),
    [("linear", [0.0, 0.25, 0.5, 1.0]), ("sine", [0.0, 0.146447, 0.5, 1.0]), ("constant", [1.0] * 4)],
)
def test_strength_after_the_zero_epochs(name, expected):
    at = schedules.strength(name, steps_per_epoch=10.0, warmup_epochs=4.0, zero_epochs=2.0)
    assert at(0) == at(19) == 0.0
    assert [at(20), at(30), at(40), at(60)] == pytest.approx(expected, abs=1e-5)
    assert at(1000) == 1.0


def test_no_warmup_is_full_strength_at_once():
    assert schedules.strength("linear", steps_per_epoch=10.0)(0) == 1.0


@pytest.mark.parametrize("per_epoch", [11.234375, 10 / 3])
def test_schedules_are_exact_to_the_last_digits_that_the_step_sees(per_epoch):
    total, warmup, peak, final = 450, round(2 * per_epoch), 2e-3, 1e-6
    at = schedules.learning_rate(
        "cosine",
        learning_rate=peak,
        total_steps=total,
        steps_per_epoch=per_epoch,
        warmup_epochs=2.0,
        final_learning_rate=final,
    )
    for step in (0, 1, warmup - 1, warmup, warmup + 1, 200, 448, 449, 450, 1000):
        t = min(1.0, (step - warmup) / (total - warmup))
        expected = final + 0.5 * (peak - final) * (1 + math.cos(math.pi * t))
        assert at(step) == pytest.approx(peak * (step + 1) / (warmup + 1) if step < warmup else expected, rel=1e-12)
    sine = schedules.strength("sine", steps_per_epoch=per_epoch, warmup_epochs=12.0, zero_epochs=0.7)
    for step in range(0, 150, 7):
        t = (step - 0.7 * per_epoch) / (12 * per_epoch)
        expected = 0.5 * (1 + math.sin(math.pi * (min(t, 1) - 0.5))) if t >= 0 else 0.0
        assert sine(step) == pytest.approx(expected, abs=1e-12)


def test_a_schedule_is_one_program_however_long_and_leaves_the_precision_as_it_was():
    traced = []

    def square(steps):
        traced.append(steps.shape)
        return steps**2

    at = schedules.tabulated(square, 10**12)
    for step in (0, 3, schedules.BLOCK - 1, schedules.BLOCK, 10**7 + 1, 3):
        assert at(step) == step**2 and isinstance(at(step), float)
    assert at(10**13) == 10.0**24 and len(traced) == 1 and not jax.config.jax_enable_x64


def timm_cosine(epoch, peak, final, begin, warmup, length):
    """timm's CosineLRScheduler once an epoch: its warm-up is no prefix, and past its length it stays at the end."""
    if epoch < warmup:
        return begin + epoch * (peak - begin) / warmup
    return final + 0.5 * (peak - final) * (1 + math.cos(math.pi * min(epoch / length, 1)))


@pytest.mark.parametrize("per", [4.0, 7.3])
def test_the_light_recipe_s_learning_rate_epoch_by_epoch(per):
    at = schedules.learning_rate(
        "cosine",
        learning_rate=5e-4,
        total_steps=round(110 * per),
        steps_per_epoch=per,
        warmup_epochs=10.0,
        warmup_learning_rate=1e-6,
        warmup_prefix=False,
        final_learning_rate=1e-5,
        cooldown_epochs=10.0,
        per_epoch=True,
    )
    for step in range(round(110 * per)):
        expected = timm_cosine(int(step / per), 5e-4, 1e-5, 1e-6, 10, 100)
        assert at(step) == pytest.approx(expected, rel=1e-12), step


def test_a_cooldown_stays_where_the_cosine_ended_and_the_warmup_begins_where_it_is_told():
    at = rate("cosine", warmup_epochs=1.0, warmup_learning_rate=0.1, cooldown_epochs=2.0, final_learning_rate=0.2)
    assert [at(0), at(5), at(10)] == pytest.approx([0.1, 0.55, 1.0])
    assert [at(45), at(80), at(90), at(100)] == pytest.approx([0.6, 0.2, 0.2, 0.2])


def test_milestones_count_epochs_from_the_start():
    at = rate("multistep", milestones=(3, 5.5), warmup_epochs=1.0, decay_factor=0.5)
    assert [at(10), at(29), at(30), at(54), at(55), at(99)] == pytest.approx([1, 1, 0.5, 0.5, 0.25, 0.25])


@pytest.mark.parametrize(("rule", "factor"), [("off", 1.0), ("linear", 4.0), ("sqrt", 2.0)])
def test_the_learning_rate_follows_the_batch(rule, factor):
    assert schedules.scaled(2e-4, rule, 1024, 256) == pytest.approx(2e-4 * factor, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "shape"), [("linear", lambda t: t), ("sine", lambda t: 0.5 * (1 + math.sin(math.pi * (t - 0.5))))]
)
def test_strength_once_an_epoch_is_that_of_its_start(name, shape):
    at = schedules.strength(name, steps_per_epoch=7.3, warmup_epochs=4.0, zero_epochs=1.0, per_epoch=True)
    for step in range(60):
        epoch = int(step / 7.3)
        expected = 0.0 if epoch < 1 else shape(min(1.0, (epoch - 1) / 4))
        assert at(step) == pytest.approx(expected, abs=1e-12), step
