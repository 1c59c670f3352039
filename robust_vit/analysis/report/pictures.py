"""Pictures as text inside a page: PNG and JPEG in base64, within a budget of bytes."""

import base64
import io
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

SIDES = (224, 160, 112, 80, 64, 48, 32)  # that images are shrunk to, until all fit
LOSSLESS = 32  # images up to this side stay as they are, to the last bit
BUDGET = 6_000_000  # bytes of base64, of all examples together
TRIED = 12  # examples by which the size of all is judged
QUALITY = 80  # of JPEG


class Coded(NamedTuple):
    """Images as the page holds them.

    Attributes:
      kind: "png" or "jpeg".
      width, height: of what is coded.
      images, changes: [N] base64; a change is 128 + 127 delta / limit.
      limits: [N] the largest |delta| of each example, at least 1e-8.
    """

    kind: str
    width: int
    height: int
    images: list[str]
    changes: list[str]
    limits: list[float]


def coded(images: np.ndarray, adversarial: np.ndarray, budget: int = BUDGET) -> Coded:
    """Encodes clean images and what an attack added to them.

    Images whose sides are small are stored without loss; larger ones are shrunk until all fit the budget, the changes
    by picking pixels, since an average of signs would be grey.

    Args:
      images, adversarial: [N,H,W,C] in [0,1], C 1 or 3; of more channels the first three are shown.
      budget: bytes of base64.
    """
    images, adversarial = (_shown(np.asarray(x, np.float64)) for x in (images, adversarial))
    delta = adversarial - images
    limits = np.maximum(np.abs(delta).reshape(len(delta), -1).max(axis=1), 1e-8)
    clean = np.rint(255 * np.clip(images, 0, 1)).astype(np.uint8)
    change = np.rint(128 + 127 * delta / limits[:, None, None, None]).astype(np.uint8)
    height, width = clean.shape[1:3]
    kind, encode = _smallest(clean, change, budget)
    pairs = [(encode(a, False), encode(b, True)) for a, b in zip(clean, change)]
    return Coded(kind, width, height, *map(list, zip(*pairs)), limits.tolist())


def _shown(x: np.ndarray) -> np.ndarray:
    """[N,H,W,1] or [N,H,W,3] of any number of channels."""
    channels = x.shape[-1]
    return x if channels in (1, 3) else x[..., :3] if channels > 3 else x[..., :1]


def _smallest(clean: np.ndarray, change: np.ndarray, budget: int) -> tuple[str, Callable[[np.ndarray, bool], str]]:
    """The first way of encoding by which all examples fit, or the last."""
    side = max(clean.shape[1:3])
    ways = [("png", side)] if side <= LOSSLESS else []
    ways += [("jpeg", size) for size in SIDES if size < side or (size == SIDES[0] and side <= size)]
    rows = np.linspace(0, len(clean) - 1, min(TRIED, len(clean))).astype(int)
    for kind, size in ways:

        def encode(x: np.ndarray, is_change: bool, kind: str = kind, size: int = size) -> str:
            return text(_shrunk(x, size, is_change), kind)

        tried = sum(len(encode(clean[row], False)) + len(encode(change[row], True)) for row in rows)
        if tried * len(clean) / len(rows) <= budget:
            break
    return kind, encode


def _shrunk(x: np.ndarray, side: int, pick: bool) -> Image.Image:
    """An image of at most that side; grey ones of one channel."""
    picture = Image.fromarray(x[..., 0] if x.shape[-1] == 1 else x)
    if max(picture.size) <= side:
        return picture
    scale = side / max(picture.size)
    size = tuple(max(1, round(scale * length)) for length in picture.size)
    return picture.resize(size, Image.Resampling.NEAREST if pick else Image.Resampling.BOX)


def text(picture: Image.Image, kind: str) -> str:
    """A picture in base64; JPEG with all of its colours (no chroma subsampling), which changes need."""
    buffer = io.BytesIO()
    options = {"optimize": True} if kind == "png" else {"quality": QUALITY, "subsampling": 0}
    picture.save(buffer, kind, **options)
    return base64.b64encode(buffer.getvalue()).decode()


def grids(maps: np.ndarray) -> list[str]:
    """Small maps [N,h,w] of any range, each as its bytes in base64, row by row: its largest value is 255."""
    maps = np.asarray(maps, np.float64)
    largest = np.maximum(maps.reshape(len(maps), -1).max(axis=1), 1e-30)[:, None, None]
    levels = np.rint(255 * np.clip(maps / largest, 0, 1)).astype(np.uint8)
    return [base64.b64encode(level.tobytes()).decode() for level in levels]


def file(path: pathlib.Path) -> str:
    """A PNG file as a data URI, with at most 256 colours, which charts do not tell from all."""
    with Image.open(path) as picture:
        few = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        return f"data:image/png;base64,{text(few, 'png')}"


def within(paths: Sequence[pathlib.Path], budget: int) -> list[tuple[pathlib.Path, str]]:
    """The first pictures that fit a budget of bytes together, as data URIs."""
    found, spent = [], 0
    for path in paths:
        made = file(path)
        if spent + len(made) <= budget:
            found.append((path, made))
            spent += len(made)
    return found
