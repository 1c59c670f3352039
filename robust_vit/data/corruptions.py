"""Common corruptions of images, 15 and 4 more, in five severities: our implementation, not the official files.

    from robust_vit.data import corruptions
    foggy = corruptions.corrupt(image, "fog", severity=3, rng=np.random.default_rng(0))   # uint8 [H,W,C] in and out

The constants are those of the generators, for images of 64 pixels and less those of CIFAR's. Where those use
ImageMagick, OpenCV or photographs (motion blur, snow, spatter, frost) the same idea is drawn with SciPy: rows of a
table that were measured with these are to say so, and are not to stand beside those of the official files.

Reference: Hendrycks and Dietterich 2019, https://arxiv.org/abs/1903.12261; github.com/hendrycks/robustness
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage

from robust_vit.errors import check, lookup

Image01 = np.ndarray  # [H,W,C] float in [0,1]
SMALL = 64  # pixels; larger images take ImageNet's constants
SEVERITIES = (1, 2, 3, 4, 5)


def gaussian_noise(x: Image01, c: float, rng: np.random.Generator) -> Image01:
    return x + c * rng.normal(size=x.shape)


def shot_noise(x: Image01, c: float, rng: np.random.Generator) -> Image01:
    return rng.poisson(x * c) / c


def impulse_noise(x: Image01, c: float, rng: np.random.Generator) -> Image01:
    draw = rng.uniform(size=x.shape)
    return np.where(draw < c / 2, 0.0, np.where(draw < c, 1.0, x))


def speckle_noise(x: Image01, c: float, rng: np.random.Generator) -> Image01:
    return x + x * c * rng.normal(size=x.shape)


def gaussian_blur(x: Image01, c: float, rng: np.random.Generator) -> Image01:
    return ndimage.gaussian_filter(x, (c, c, 0), mode="nearest")


def defocus_blur(x: Image01, c: tuple[float, float], rng: np.random.Generator) -> Image01:
    radius, alias = c
    reach = np.arange(-8, 9) if radius <= 8 else np.arange(-int(radius), int(radius) + 1)
    disk = (reach[:, None] ** 2 + reach[None] ** 2 <= radius**2).astype(float)
    kernel = ndimage.gaussian_filter(disk / disk.sum(), alias, truncate=(1 if radius <= 8 else 2) / alias)
    return _convolved(x, kernel / kernel.sum())


def glass_blur(x: Image01, c: tuple[float, int, int], rng: np.random.Generator) -> Image01:
    """Pixels change places with neighbours, between two blurs."""
    sigma, reach, rounds = c
    x = ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest").copy()
    height, width = x.shape[:2]
    for _ in range(rounds):
        moves = rng.integers(-reach, reach, size=(height, width, 2))
        for row in range(height - reach - 1, reach - 1, -1):
            for column in range(width - reach - 1, reach - 1, -1):
                other = row + moves[row, column, 0], column + moves[row, column, 1]
                x[row, column], x[other] = x[other].copy(), x[row, column].copy()
    return ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest")


def motion_blur(x: Image01, c: tuple[float, float], rng: np.random.Generator) -> Image01:
    return _smeared(x, *c, rng.uniform(-45, 45))


def zoom_blur(x: Image01, c: tuple[float, float], rng: np.random.Generator) -> Image01:
    top, step = c
    factors = np.arange(1, top, step)
    return (x + sum(_zoomed(x, factor) for factor in factors)) / (len(factors) + 1)


def fog(x: Image01, c: tuple[float, float], rng: np.random.Generator) -> Image01:
    thickness, decay = c
    top = x.max()
    return (x + thickness * _plasma(x.shape[:2], decay, rng)[..., None]) * top / (top + thickness)


def frost(x: Image01, c: tuple[float, float], rng: np.random.Generator) -> Image01:
    """White needles where a fractal is steep: the generators lay photographs of frost over the image."""
    ridges = 1.0 - 2.0 * np.abs(_plasma(x.shape[:2], 1.4, rng) - 0.5)
    texture = np.clip(ridges, 0, 1) ** 3 * rng.uniform(0.7, 1.0, x.shape[:2])
    return c[0] * x + c[1] * texture[..., None]


def snow(x: Image01, c: tuple[float, ...], rng: np.random.Generator) -> Image01:
    mean, deviation, zoom, threshold, radius, sigma, mixed = c
    layer = _zoomed(rng.normal(mean, deviation, (*x.shape[:2], 1)), zoom)
    layer = np.clip(np.where(layer < threshold, 0.0, layer), 0, 1)
    layer = _smeared(layer, radius, sigma, rng.uniform(-135, -45))
    pale = np.maximum(x, x.mean(-1, keepdims=True) * 1.5 + 0.5)
    return mixed * x + (1 - mixed) * pale + layer + np.rot90(layer, 2)


def spatter(x: Image01, c: tuple[float, ...], rng: np.random.Generator) -> Image01:
    """Drops of water, or mud where the last constant is 1."""
    mean, deviation, sigma, threshold, opacity, mud = c
    layer = ndimage.gaussian_filter(rng.normal(mean, deviation, x.shape[:2]), sigma)
    drops = ndimage.gaussian_filter((layer > threshold).astype(float), 0.8 if mud else 0.4)[..., None]
    colour = np.array([63, 42, 20] if mud else [175, 238, 238]) / 255.0
    colour = colour if x.shape[-1] == 3 else colour.mean(keepdims=True)
    cover = np.clip(min(opacity, 1.0) * drops, 0, 1)
    return x * (1 - cover) + colour * cover


def contrast(x: Image01, c: float, rng: np.random.Generator) -> Image01:
    mean = x.mean((0, 1), keepdims=True)
    return (x - mean) * c + mean


def brightness(x: Image01, c: float, rng: np.random.Generator) -> Image01:
    """More value, in HSV: all channels times one factor."""
    value = x.max(-1, keepdims=True)
    return np.where(value > 0, x / np.maximum(value, 1e-8), 1.0) * np.clip(value + c, 0, 1)


def saturate(x: Image01, c: tuple[float, float], rng: np.random.Generator) -> Image01:
    """Another saturation, in HSV; grey images stay as they are."""
    value = x.max(-1, keepdims=True)
    old = np.where(value > 0, 1 - x.min(-1, keepdims=True) / np.maximum(value, 1e-8), 0.0)
    new = np.clip(old * c[0] + c[1], 0, 1)
    return np.where(old > 0, value - (value - x) * new / np.maximum(old, 1e-8), x)


def jpeg_compression(x: Image01, c: int, rng: np.random.Generator) -> Image01:
    pixels = _pixels(x)
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(
        file := io.BytesIO(), "JPEG", quality=c
    )
    return np.asarray(Image.open(file), float).reshape(x.shape) / 255.0


def pixelate(x: Image01, c: float, rng: np.random.Generator) -> Image01:
    pixels, (height, width) = _pixels(x), x.shape[:2]
    image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    small = image.resize((max(1, int(width * c)), max(1, int(height * c))), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BOX), float).reshape(x.shape) / 255.0


def elastic_transform(x: Image01, c: tuple[float, float, float], rng: np.random.Generator) -> Image01:
    """A random affine map, then displacements that are smooth; `c` in sides of the image."""
    height, width = x.shape[:2]
    side = min(height, width)
    amplitude, sigma, affine = (value * side for value in c)
    third = side // 3
    corners = np.array([[height / 2 + a * third, width / 2 + b * third] for a, b in ((1, 1), (1, -1), (-1, -1))])
    moved = corners + rng.uniform(-affine, affine, corners.shape)
    matrix = np.linalg.solve(np.c_[moved, np.ones(3)], corners).T  # [2,3]: where a pixel comes from
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    places = np.einsum("ij,jhw->ihw", matrix, np.stack([rows, columns, np.ones_like(rows)]))
    if amplitude:
        shift = rng.uniform(-1, 1, (2, height, width))
        places = places + amplitude * np.stack(
            [ndimage.gaussian_filter(one, max(sigma, 1e-3), truncate=3) for one in shift]
        )
    return np.stack(
        [ndimage.map_coordinates(x[..., k], places, order=1, mode="reflect") for k in range(x.shape[-1])], -1
    )


# name: (function, five constants at 224, five at 32). The last four are the extra ones.
CORRUPTIONS: dict[str, tuple[Callable, tuple, tuple]] = {
    "gaussian_noise": (gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38), (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (shot_noise, (60, 25, 12, 5, 3), (500, 250, 100, 75, 50)),
    "impulse_noise": (impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27), (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": (
        defocus_blur,
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    ),
    "glass_blur": (
        glass_blur,
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    ),
    "motion_blur": (
        motion_blur,
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    ),
    "zoom_blur": (
        zoom_blur,
        ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
        ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    ),
    "snow": (
        snow,
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "frost": (
        frost,
        ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
        ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    ),
    "fog": (
        fog,
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    ),
    "brightness": (brightness, (0.1, 0.2, 0.3, 0.4, 0.5), (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (contrast, (0.4, 0.3, 0.2, 0.1, 0.05), (0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic_transform": (
        elastic_transform,
        ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)),
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    "pixelate": (pixelate, (0.6, 0.5, 0.4, 0.3, 0.25), (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": (jpeg_compression, (25, 18, 15, 10, 7), (80, 65, 58, 50, 40)),
    "speckle_noise": (speckle_noise, (0.15, 0.2, 0.35, 0.45, 0.6), (0.06, 0.1, 0.12, 0.16, 0.2)),
    "gaussian_blur": (gaussian_blur, (1, 2, 3, 4, 6), (0.4, 0.6, 0.7, 0.8, 1)),
    "spatter": (
        spatter,
        (
            (0.65, 0.3, 4, 0.69, 0.6, 0),
            (0.65, 0.3, 3, 0.68, 0.6, 0),
            (0.65, 0.3, 2, 0.68, 0.5, 0),
            (0.65, 0.3, 1, 0.65, 1.5, 1),
            (0.67, 0.4, 1, 0.65, 1.5, 1),
        ),
        (
            (0.62, 0.1, 0.7, 0.7, 0.5, 0),
            (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ),
    ),
    "saturate": (
        saturate,
        ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
        ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
    ),
}
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
NAMES = tuple(name for name in CORRUPTIONS if name not in EXTRA)  # the 15


def corrupt(image: np.ndarray, name: str, severity: int, rng: np.random.Generator) -> np.ndarray:
    """One corrupted image.

    Args:
      image: [H,W,C] uint8, C 1 or 3.
      name: of `CORRUPTIONS`.
      severity: 1 to 5.
      rng: of its draws.

    Returns:
      [H,W,C] uint8.

    Raises:
      ValueError: for an unknown name, a severity out of range, or an image of another kind.
    """
    function, large, small = lookup("corruption", name, CORRUPTIONS)
    check("severity", severity, severity in SEVERITIES, "a whole number from 1 to 5")
    told = f"{image.dtype}{list(image.shape)}"
    check(
        "image", told, image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] in (1, 3), "uint8 [H,W,1 or 3]"
    )
    constants = small if max(image.shape[:2]) <= SMALL else large
    return _pixels(function(image.astype(float) / 255.0, constants[severity - 1], rng))


def _pixels(x: Image01) -> np.ndarray:
    return np.round(255 * np.clip(x, 0, 1)).astype(np.uint8)


def _convolved(x: Image01, kernel: np.ndarray) -> Image01:
    return np.stack([ndimage.convolve(x[..., k], kernel, mode="reflect") for k in range(x.shape[-1])], -1)


def _smeared(x: Image01, radius: float, sigma: float, degrees: float) -> Image01:
    """Along a line to one side, with weights that fall like a Gaussian."""
    reach = int(radius)
    away = np.arange(2 * reach + 1)
    weights = np.exp(-0.5 * (away / sigma) ** 2)
    kernel = np.zeros((4 * reach + 3, 4 * reach + 3))
    middle, angle = 2 * reach + 1, np.deg2rad(degrees)
    np.add.at(
        kernel,
        (np.rint(middle + away * np.sin(angle)).astype(int), np.rint(middle + away * np.cos(angle)).astype(int)),
        weights,
    )
    return _convolved(x, kernel / kernel.sum())


def _zoomed(x: Image01, factor: float) -> Image01:
    """The middle, larger; the size stays."""
    height, width = x.shape[:2]
    h, w = int(np.ceil(height / factor)), int(np.ceil(width / factor))
    top, left = (height - h) // 2, (width - w) // 2
    large = ndimage.zoom(x[top : top + h, left : left + w], (factor, factor, 1), order=1)
    top, left = (max(large.shape[0] - height, 0)) // 2, (max(large.shape[1] - width, 0)) // 2
    cut = large[top : top + height, left : left + width]
    return np.pad(cut, ((0, height - cut.shape[0]), (0, width - cut.shape[1]), (0, 0)), mode="edge")


def _plasma(size: tuple[int, int], decay: float, rng: np.random.Generator) -> np.ndarray:
    """A cloud by the diamond-square method, in [0,1]; wraps around."""
    n = 1 << int(np.ceil(np.log2(max(size))))
    field, step, wobble = np.zeros((n, n)), n, 100.0
    while step >= 2:
        half = step // 2
        corners = field[::step, ::step]
        square = corners + np.roll(corners, -1, 0)
        square = square + np.roll(square, -1, 1)
        field[half::step, half::step] = square / 4 + wobble * rng.uniform(-1, 1, square.shape)
        centres = field[half::step, half::step]
        right = centres + np.roll(centres, 1, 0) + corners + np.roll(corners, -1, 1)
        field[::step, half::step] = right / 4 + wobble * rng.uniform(-1, 1, right.shape)
        below = centres + np.roll(centres, 1, 1) + corners + np.roll(corners, -1, 0)
        field[half::step, ::step] = below / 4 + wobble * rng.uniform(-1, 1, below.shape)
        step, wobble = half, wobble / decay
    field = field - field.min()
    return (field / max(field.max(), 1e-12))[: size[0], : size[1]]
