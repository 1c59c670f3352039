"""PGD's way, perturbations, spectra and filmstrips hold what they say: against attacks, NumPy and sums by hand."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from robust_vit import attacks
from robust_vit.analysis import batches, estimates, filmstrip, perturbations, saving, spectra
from robust_vit.analysis.trajectory import trajectory

NAMES = ("ant", "bee", "cat")
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0.2, 0.8, (4, 4, 4, 1)).astype(np.float32)
LABELS = np.array([0, 1, 2, 0], np.int32)
WEIGHTS = RNG.normal(size=(16, 3)).astype(np.float32)
LINEAR = jax.tree_util.Partial(lambda w, x: x.reshape(len(x), -1) @ w, jnp.asarray(WEIGHTS))


@pytest.fixture(scope="module")
def way():
    return trajectory(LINEAR, IMAGES, LABELS, norm="linf", epsilon=0.1, steps=4)


def test_the_way_is_that_of_pgd_and_holds_logits_and_gradients(way):
    attack = attacks.pgd(norm="linf", epsilon=0.1, steps=4, random_start=False, keep="last")
    found = jax.jit(attack)(jax.random.split(jax.random.key(0), 4), LINEAR, IMAGES, LABELS)
    assert way.points.shape == (5, 4, 4, 4, 1)
    np.testing.assert_array_equal(way.points[0], IMAGES)
    np.testing.assert_allclose(way.points[-1], found, atol=1e-6)
    for points, logits, gradients in zip(*(np.asarray(one, np.float64) for one in way)):
        expected = points.reshape(4, 16) @ WEIGHTS.astype(np.float64)
        np.testing.assert_allclose(logits, expected, atol=1e-5)
        powers = np.exp(expected - expected.max(-1, keepdims=True))
        surplus = powers / powers.sum(-1, keepdims=True) - np.eye(3)[LABELS]  # the cross-entropy's slope in logits
        np.testing.assert_allclose(gradients.reshape(4, 16), surplus @ WEIGHTS.T, atol=1e-5)


def test_a_targeted_way_goes_to_the_label():
    towards = trajectory(LINEAR, IMAGES, LABELS, norm="linf", epsilon=0.3, steps=4, targeted=True)
    log_p = np.asarray(jax.nn.log_softmax(towards.logits))[:, np.arange(4), LABELS]
    assert (np.diff(log_p, axis=0) >= -1e-6).all() and (log_p[1] > log_p[0]).all()
    with pytest.raises(ValueError, match="steps = 0: must be"):
        trajectory(LINEAR, IMAGES, LABELS, epsilon=0.1, steps=0)


def test_any_number_of_examples_gives_the_same():
    found = batches.mapped(lambda x: {"twice": 2 * x, "sum": x.sum((1, 2, 3))}, IMAGES, size=3)
    np.testing.assert_array_equal(found["twice"], 2 * IMAGES)
    np.testing.assert_allclose(found["sum"], IMAGES.sum((1, 2, 3)), rtol=1e-6)


def test_perturbations_are_scaled_to_grey_and_drawn_with_the_decisions(way):
    adversarial = np.asarray(way.points[-1])
    seen = perturbations.perturbed("linear", LINEAR, IMAGES, adversarial)
    logits = IMAGES.reshape(4, 16) @ WEIGHTS
    expected = np.exp(logits - logits.max(-1, keepdims=True))
    np.testing.assert_allclose(seen.clean_probabilities, expected / expected.sum(-1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(perturbations.scaled([[-0.1, 0.0, 0.05, 0.3]], 0.1), [[0, 0.5, 0.75, 1]])
    figure = perturbations.plot_perturbations(IMAGES, LABELS, [seen, seen._replace(name="twin")], NAMES, 0.1, "PGD-4")
    grid = np.array(figure.axes).reshape(8, 4)
    for i in range(4):
        change = adversarial[i, ..., 0].astype(np.float64) - IMAGES[i, ..., 0]
        np.testing.assert_allclose(grid[0, i].images[0].get_array(), IMAGES[i, ..., 0])
        np.testing.assert_allclose(grid[5, i].images[0].get_array(), change)
        np.testing.assert_allclose(grid[6, i].images[0].get_array(), np.clip(0.5 + change / 0.2, 0, 1))
        np.testing.assert_allclose(grid[7, i].images[0].get_array(), adversarial[i, ..., 0])
        most = seen.adversarial_probabilities[i].argmax()
        assert grid[3, i].get_xlabel() == f"{NAMES[most]}  {seen.adversarial_probabilities[i, most]:.0%}"
    assert grid[5, 0].images[0].get_clim() == (-0.1, 0.1) and grid[4, 0].get_ylabel() == "twin\nclean"
    with pytest.raises(ValueError, match="adversarial.shape"):
        perturbations.perturbed("linear", LINEAR, IMAGES, adversarial[:2])


def test_the_spectrum_is_the_sum_of_waves():
    delta = RNG.normal(size=(2, 4, 6, 3))
    found = spectra.amplitude(delta)
    y, x = np.mgrid[:4, :6]
    for row, v in enumerate(range(-2, 2)):
        for column, u in enumerate(range(-3, 3)):
            wave = np.exp(-2j * np.pi * (v * y / 4 + u * x / 6))
            parts = np.einsum("nhwc,hw->nc", delta, wave)
            np.testing.assert_allclose(found[:, row, column], np.sqrt((np.abs(parts) ** 2).mean(-1)))
            assert spectra.radii(4, 6)[row, column] == pytest.approx(np.hypot(v / 4, u / 6))
    plain = np.abs(np.fft.fftshift(np.fft.fft2(delta[..., 0]), axes=(1, 2)))
    np.testing.assert_allclose(spectra.amplitude(delta[..., :1]), plain)


def test_energy_lies_where_the_wave_is():
    x = np.arange(8)
    wave = np.broadcast_to(np.cos(2 * np.pi * 3 * x / 8)[None, None, :, None], (1, 8, 8, 1))
    np.testing.assert_allclose(
        spectra.energy_below(wave, [0.25, 3 / 8 - 0.01, 3 / 8, 0.71]), [[0, 0, 1, 1]], atol=1e-12
    )
    np.testing.assert_allclose(spectra.energy_below(np.ones((1, 8, 8, 1)), 0), 1)
    assert spectra.energy_below(np.zeros((1, 8, 8, 1))) == 1
    white = RNG.normal(size=(3, 8, 8, 2))
    share = spectra.energy_below(white, 0.25)
    power = np.abs(np.fft.fft2(white, axes=(1, 2))) ** 2
    inside = np.hypot(*np.meshgrid(np.fft.fftfreq(8), np.fft.fftfreq(8), indexing="ij")) <= 0.25
    np.testing.assert_allclose(share, power[:, inside].sum((1, 2)) / power.sum((1, 2, 3)))
    assert np.all(np.diff(spectra.energy_below(white, np.linspace(0, 0.75, 9)), axis=1) >= 0)


def test_spectra_are_drawn_with_their_energy_and_stated_with_intervals():
    deltas = {
        "smooth": np.ones((3, 8, 8, 1)) + 0.1 * RNG.normal(size=(3, 8, 8, 1)),
        "rough": RNG.normal(size=(3, 8, 8, 1)),
    }
    figure = spectra.plot_spectra(deltas, title="two sets")
    np.testing.assert_allclose(
        figure.axes[0].images[0].get_array(), np.log10(np.sqrt((spectra.amplitude(deltas["smooth"]) ** 2).mean(0)))
    )
    curve = {line.get_label(): line.get_xydata() for line in figure.axes[2].lines}["rough"]
    np.testing.assert_allclose(curve[:, 1], spectra.energy_below(deltas["rough"], curve[:, 0]).mean(0))
    stated, apart = spectra.measured(deltas), spectra.differences(deltas)["smooth - rough"]
    assert stated["smooth"]["value"] > 0.95 > stated["rough"]["value"]
    assert apart["value"] == pytest.approx(stated["smooth"]["value"] - stated["rough"]["value"])
    assert apart["interval"][0] < apart["value"] < apart["interval"][1]


def test_intervals_are_students_wilsons_and_paired():
    values = RNG.normal(2, 1, 5)
    half = 2.7764451 * values.std(ddof=1) / np.sqrt(5)  # t of 4 degrees of freedom
    np.testing.assert_allclose(estimates.mean(values).interval, (values.mean() - half, values.mean() + half), rtol=1e-6)
    assert estimates.mean([3.0]).interval == (3.0, 3.0)
    np.testing.assert_allclose(estimates.share([True, False]).interval, (0.0945312, 0.9054688), rtol=1e-5)
    gained = estimates.difference(np.array([True, False, False]), np.array([True, True, True]))
    assert gained.value == pytest.approx(2 / 3) and estimates.difference([1.0, 2.0], [2.0, 4.0]).value == 1.5
    assert estimates.share([True] * 4).text(100, " %", 1).startswith("100.0 % (51.0")
    with pytest.raises(ValueError, match="examples = 0: must be at least 1"):
        estimates.mean([])


def test_a_run_that_is_called_by_its_path_is_a_file_of_the_folder(tmp_path):
    files = saving.save(tmp_path, "shift-/runs/a", None, {"value": 1.5}, {"of": [1, 2]})
    assert files == [tmp_path / "shift-runs-a.json", tmp_path / "shift-runs-a.npz"]
    assert json.loads(files[0].read_text())["value"] == 1.5 and np.load(files[1])["of"].tolist() == [1, 2]


@pytest.fixture(scope="module")
def films():
    keywords = dict(norm="linf", epsilon=0.1, steps=4)
    return {"linear": filmstrip.film(LINEAR, IMAGES[0], 0, **keywords)}


def test_a_film_is_the_way_of_one_image(films, way):
    strip = films["linear"]
    np.testing.assert_allclose(strip.points, way.points[:, 0], atol=1e-6)
    np.testing.assert_allclose(strip.probabilities, jax.nn.softmax(way.logits[:, 0]), atol=1e-5)
    seen = filmstrip.Film(np.zeros((3, 2, 2, 1)), np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]]))
    assert filmstrip.flip(seen, 0) == 1 and filmstrip.flip(seen, 1) == 0
    assert filmstrip.flip(seen._replace(probabilities=seen.probabilities[[0, 2]]), 0) is None


def test_a_strip_shows_the_steps_and_an_animation_every_one(films):
    figure = filmstrip.plot_filmstrip(films, 0, NAMES, "PGD-4", most=3)
    assert [axes.get_title() for axes in figure.axes] == ["image", "step 2", "step 4"]
    strip = films["linear"]
    for axes, step in zip(figure.axes, (0, 2, 4)):
        np.testing.assert_array_equal(axes.images[0].get_array(), strip.points[step, ..., 0])
        most = strip.probabilities[step].argmax()
        assert axes.get_xlabel() == f"{NAMES[most]}  {strip.probabilities[step, most]:.0%}"
    frame = filmstrip.plot_frame(films, 3, 0, NAMES)
    np.testing.assert_allclose(frame.axes[1].images[0].get_array(), (strip.points[3] - strip.points[0])[..., 0])
    np.testing.assert_allclose([bar.get_width() for bar in frame.axes[2].patches], strip.probabilities[3], rtol=1e-6)
    with Image.open(io.BytesIO(filmstrip.animate(films, 0, NAMES))) as moving:
        assert moving.n_frames == 5 and moving.info["loop"] == 0
        shown = []
        for place in range(5):
            moving.seek(place)
            shown.append(moving.info["duration"])
            frame = filmstrip.plot_frame(films, place, 0, NAMES).canvas
            frame.draw()
            drawn = np.asarray(frame.buffer_rgba())[..., :3].astype(int)
            apart = np.abs(np.asarray(moving.convert("RGB")).astype(int) - drawn)
            assert apart.mean() < 4 and np.percentile(apart, 99.9) < 30  # the nearest of 256 colours
        assert shown == [600] * 4 + [2000]
