"""RandAugment: the fifteen operations, what a magnitude means to each, and how they are drawn."""

import collections
import importlib.util
import pathlib

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from robust_vit.data import host
from robust_vit.data.transforms import operations, rand_augment
from robust_vit.data.transforms.operations import Look

LOOK = Look("bicubic", 128)
# timm's names of the fifteen, in its order, plain and increasing
TIMM = (
    "AutoContrast Equalize Invert Rotate Posterize Solarize SolarizeAdd Color Contrast Brightness Sharpness ShearX"
    " ShearY TranslateXRel TranslateYRel"
).split()
GROWING = ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")


def picture(channels=3, seed=0, size=(24, 20)):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    return small if channels == 3 else small.convert("L")


@pytest.mark.parametrize(
    ("operation", "plain", "increasing"),
    [
        ("rotate", 27.0, 27.0),
        ("posterize", 3, 1),
        ("solarize", 230, 26),
        ("solarize_add", 99, 99),
        ("color", 1.72, 1.81),
        ("contrast", 1.72, 1.81),
        ("brightness", 1.72, 1.81),
        ("sharpness", 1.72, 1.81),
        ("shear_x", 0.27, 0.27),
        ("shear_y", 0.27, 0.27),
        ("translate_x", 0.405, 0.405),
        ("translate_y", 0.405, 0.405),
    ],
)
def test_what_magnitude_9_means(operation, plain, increasing):
    apply = getattr(operations, operation)
    assert rand_augment.PLAIN[apply](0.9, 1) == pytest.approx(plain)
    assert rand_augment.INCREASING[apply](0.9, 1) == pytest.approx(increasing)
    turned = {1.81: 0.19, 1: 1, 26: 26, 99: 99}.get(increasing, -increasing)  # with the other sign
    assert rand_augment.INCREASING[apply](0.9, -1) == pytest.approx(turned)


def test_strength_grows_with_the_level_where_it_says_so():
    """The distance from the image, in grey levels, grows; of what moves pixels, while it moves them by few."""
    image = picture()
    moving = {
        operations.rotate,
        *(getattr(operations, f"{kind}_{axis}") for kind in ("shear", "translate") for axis in "xy"),
    }
    for apply in rand_augment.INCREASING:
        levels = (0.0, 0.05, 0.1) if apply in moving else (0.0, 0.5, 1.0)
        arguments = [rand_augment.INCREASING[apply](level, 1) for level in levels]
        if arguments[0] is None or apply is operations.posterize:
            continue
        outs = [np.asarray(apply(image, one, LOOK), float) for one in arguments]
        none, half, full = (np.abs(out - np.asarray(image, float)).mean() for out in outs)
        assert none < 0.01 and none < half < full, apply.__name__
    kept = [rand_augment.INCREASING[operations.posterize](level, 1) for level in (0.0, 0.5, 1.0)]
    assert kept == [4, 2, 0]


def test_operations_are_pillows_and_look_up_tables():
    for image in (picture(3), picture(1)):
        pixels = np.asarray(image).astype(int)

        def same(apply, argument, expected, image=image):
            assert np.array_equal(np.asarray(apply(image, argument, LOOK)), np.asarray(expected)), apply.__name__

        same(operations.auto_contrast, None, ImageOps.autocontrast(image))
        same(operations.equalize, None, ImageOps.equalize(image))
        same(operations.invert, None, 255 - pixels)
        same(operations.posterize, 3, pixels // 32 * 32)
        same(operations.posterize, 0, 0 * pixels)
        same(operations.posterize, 8, pixels)
        same(operations.solarize, 100, np.where(pixels < 100, pixels, 255 - pixels))
        same(operations.solarize, 256, pixels)
        same(operations.solarize_add, 60, np.where(pixels < 128, np.minimum(pixels + 60, 255), pixels))
        same(operations.contrast, 1.5, ImageEnhance.Contrast(image).enhance(1.5))
        same(operations.brightness, 0.5, ImageEnhance.Brightness(image).enhance(0.5))
        same(operations.sharpness, 1.9, ImageEnhance.Sharpness(image).enhance(1.9))
        shifted = operations.translate_x(image, 0.25, Look("nearest", 7))  # 6 of 24 pixels
        expected = np.full_like(pixels, 7)
        expected[:, :-6] = pixels[:, 6:]
        assert np.array_equal(np.asarray(shifted), expected)
    assert np.array_equal(operations.color(picture(1), 0.1, LOOK), picture(1))
    grey = np.asarray(operations.color(picture(3), 0.0, LOOK))
    assert (grey[..., 0] == grey[..., 1]).all() and (grey[..., 1] == grey[..., 2]).all()


@pytest.fixture(scope="module")
def drawn():
    """What 3,000 images get of rand-m9-mstd0.5-inc1."""
    transform = host.RandAugment.parse("rand-m9-mstd0.5-inc1")
    return [transform.draw(np.random.default_rng(i)) for i in range(3000)]


def test_two_operations_are_drawn_and_each_is_applied_half_the_time(drawn):
    counts = np.bincount([len(one) for one in drawn], minlength=3)
    assert stats.chisquare(counts, 3000 * np.array([0.25, 0.5, 0.25])).pvalue > 0.001


def test_all_fifteen_are_drawn_equally_often_in_any_order_and_again(drawn):
    assert len(rand_augment.INCREASING) == len(rand_augment.PLAIN) == 15
    for place in range(2):
        seen = collections.Counter(one[place][0] for one in drawn if len(one) == 2)
        assert set(seen) == set(rand_augment.INCREASING)
        assert stats.chisquare(list(seen.values())).pvalue > 0.001
    twice = np.mean([one[0][0] is one[1][0] for one in drawn if len(one) == 2])
    assert 0.03 < twice < 0.11  # 1 / 15: with replacement


def test_magnitudes_are_normal_around_nine_and_signs_are_even(drawn):
    arguments = collections.defaultdict(list)
    for one in drawn:
        for apply, argument in one:
            arguments[apply.__name__].append(argument)
    angles = np.array(arguments["rotate"])
    assert 0.4 < np.mean(angles > 0) < 0.6
    levels = np.abs(angles) / 3
    assert abs(levels.mean() - 9) < 0.1 and abs(levels.std() - 0.5) < 0.08 and levels.max() <= 10
    factors = np.array(arguments["brightness"])
    assert ((factors < 0.4) | (factors > 1.6)).all() and 0.35 < np.mean(factors > 1) < 0.65
    assert set(arguments["posterize"]) <= {0, 1, 2}


def test_magnitudes_are_cut_off_at_the_largest_and_uniform_above_a_deviation_of_100():
    cut = host.RandAugment(10, 3.0)
    levels = np.array([cut.level(np.random.default_rng(i)) for i in range(500)])
    assert levels.max() == 1 and 0.4 < np.mean(levels == 1) < 0.6
    uniform = host.RandAugment.parse("rand-m5-mstd101-n3-p1")
    generator = np.random.default_rng(0)
    levels = [uniform.level(generator) for _ in range(500)]
    assert stats.kstest(levels, stats.uniform(0, 0.5).cdf).pvalue > 0.001
    assert len(uniform.draw(np.random.default_rng(0))) == 3


@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 32, 3), (5, 9, 3)])
def test_images_keep_their_form_and_depend_on_the_generator_alone(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    before = pixels.copy()
    transform = host.RandAugment(probability=1.0)
    outs = [transform(pixels, np.random.default_rng(i)) for i in range(40)]
    assert all(out.shape == shape and out.dtype == np.uint8 for out in outs) and np.array_equal(pixels, before)
    assert np.mean([not np.array_equal(out, pixels) for out in outs]) > 0.8
    for i in range(3):
        again = transform(Image.fromarray(np.squeeze(pixels)), np.random.default_rng(i))
        assert np.array_equal(np.asarray(again).reshape(shape), outs[i])


def test_the_grammar_is_timms():
    (usual,) = host.build(["rand-m9-mstd0.5-inc1"])
    assert usual == host.RandAugment(9.0, 0.5, True, 2, 0.5, 10.0) == host.RandAugment()
    assert host.RandAugment.parse("rand-n3") == host.RandAugment(10.0, 0.0, False, 3, 0.5, 10.0)
    assert host.RandAugment.parse("rand-m15-mmax20-p0.7") == host.RandAugment(15.0, 0.0, False, 2, 0.7, 20.0)
    assert host.build(["rand_augment(magnitude=5, fill=0)"]) == (host.RandAugment(5, fill=0),)
    assert host.build(["rand_augment('rand-m9-mstd0.5-inc1')"]) == (usual,)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("rand-m9-mstd", "'rand-m9-mstd': section 'mstd': must end in a number"),
        ("rand-w0", "'rand-w0': section = 'w': must be one of inc, m, mmax, mstd, n, p"),
        ("rand-m12", r"rand_augment magnitude = 12.0: must be in \[0, 10\], the largest \(mmax\)"),
        ("rand-m9-p-1", "section"),
        ("rand-m9-p1.5", r"rand_augment probability = 1.5: must be a probability"),
        ("rand_augment(probability=-0.1)", r"rand_augment probability = -0.1: must be a probability"),
        ("rand-n0", "rand_augment operations = 0: must be at least 1"),
        ("rand-m9-n2.5", "section 'n2.5': must end in a number"),
        ("rand_augmnt", "data transform = 'rand_augmnt': must be one of .*did you mean 'rand_augment'"),
        ("rand_augment('m9')", "data transform = 'm9': must be written like 'rand-m3'"),
        ("rand_augment(deviation=-1)", "rand_augment deviation = -1: must be >= 0"),
    ],
)
def test_what_cannot_be_read_is_named(wrong, message):
    with pytest.raises(ValueError, match=message) as error:
        host.build([wrong])
    assert "\n" not in str(error.value)


def timms():
    """timm's module alone: the package wants a torchvision that fits its PyTorch, this file wants Pillow."""
    timm = importlib.util.find_spec("timm")
    if timm is None:
        pytest.skip("compares with timm (.[peers])")
    path = pathlib.Path(timm.origin).parent / "data" / "auto_augment.py"
    spec = importlib.util.spec_from_file_location("auto_augment", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.peers
@pytest.mark.parametrize("increasing", [False, True])
def test_every_operation_is_timms_at_every_magnitude(increasing):
    auto_augment = timms()
    ours = rand_augment.INCREASING if increasing else rand_augment.PLAIN
    hparams = {"img_mean": (128, 128, 128), "interpolation": Image.Resampling.BICUBIC}
    image = picture()
    for name, (apply, argument) in zip(TIMM, ours.items(), strict=True):
        for magnitude in (0, 3, 9, 10):
            if name == "Posterize" and argument(magnitude / 10, 1) == 0:
                continue  # newer versions of Pillow refuse it
            grown = name + "Increasing" if increasing and name in GROWING else name
            peer = auto_augment.AugmentOp(grown, prob=1.0, magnitude=magnitude, hparams=hparams)
            seen = {np.asarray(peer(image)).tobytes() for _ in range(20)}
            mine = {np.asarray(apply(image, argument(magnitude / 10, sign), LOOK)).tobytes() for sign in (-1, 1)}
            assert seen <= mine and (len(seen) == len(mine)), (grown, magnitude)
