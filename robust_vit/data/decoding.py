"""What a file shows, as pixels: encoded images and images stored as numbers, to 8 bits a channel; what is no image.

Scale, transparency and orientation are decided here, once for every source. An encoded image stays a PIL image, so that
`host` can still decode a JPEG no larger than a crop needs.
"""

import io
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from robust_vit.errors import Mendable, check, lookup

MODES = {1: "L", 3: "RGB"}
BACKGROUNDS = {"white": 255, "black": 0}


class BadImage(Mendable):
    """The bytes are no image, or a damaged one."""


def keywords(background: str, orientation: bool) -> dict[str, Any]:
    """Returns a source's options as checked keywords of `decode`."""
    lookup("data.options.background", background, BACKGROUNDS)
    check("data.options.orientation", orientation, isinstance(orientation, bool), "True or False")
    return {"background": background, "orientation": orientation}


def decode(encoded: bytes, channels: int = 3, background: str = "white", orientation: bool = True) -> Image.Image:
    """Opens an encoded image in the mode that `channels` asks for; a plain JPEG stays undecoded until it is needed.

    Transparent images are laid on a background, where Pillow's own conversion would show the colour hidden under the
    transparency. 16-bit grey is scaled from 0..65535 to 0..255, where Pillow would cut it off at 255. Palettes, one-bit
    images and CMYK are converted by Pillow.

    Args:
      encoded: the file.
      channels: 1 for grey, else colour.
      background: "white" or "black".
      orientation: whether to turn a photograph as its EXIF says, as whatever shows it does; torchvision, and with it
        published accuracies on ImageNet, do not.

    Raises:
      BadImage: not an image that Pillow can read, or one whose scale nobody knows (floats).
    """
    try:
        image = Image.open(io.BytesIO(encoded))
    except UnidentifiedImageError as error:
        raise BadImage(f"{len(encoded)} bytes that are no image") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error and more on broken headers
        raise BadImage(str(error)) from error
    mode, turned = MODES.get(channels, "RGB"), orientation and _is_turned(image)
    if image.format == "JPEG" and image.mode == mode and not turned:
        return image
    image = load(image)
    if turned:
        image = ImageOps.exif_transpose(image)
    try:
        return _plain(image, background).convert(mode)
    except ValueError as error:  # a colour space that Pillow cannot convert
        raise BadImage(str(error)) from error


def _is_turned(image: Image.Image) -> bool:
    """Whether EXIF says that the stored pixels must be turned or mirrored; damaged EXIF says nothing."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # the pixels may well be good: Pillow raises SyntaxError, struct.error, ... here
        return False


def _plain(image: Image.Image, background: str) -> Image.Image:
    """An image of 8 bits without transparency."""
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise BadImage(f"integers {levels.min()}..{levels.max()}, must be 16 bits, 0..65535")
        grey = ((levels + 128) // 257).astype(np.uint8)
        grey[levels == image.info.get("transparency", -1)] = BACKGROUNDS[background]
        return Image.fromarray(grey)
    if image.mode == "F":
        raise BadImage("float pixels, whose scale the file does not say; store 8 or 16 bits")
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        pixels = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, background), pixels).convert("RGB")
    return image


def load(image: Image.Image) -> Image.Image:
    """Reads the pixels of a PIL image.

    Raises:
      BadImage: truncated or damaged.
    """
    try:
        image.load()
    except Exception as error:
        raise BadImage(str(error)) from error
    return image


def as_pixels(values: Any, float_max: float | None, name: str) -> np.ndarray:
    """Reads an image that is stored as numbers, [H,W] or [H,W,C].

    Args:
      values: integers in 0..255, or floats in 0..`float_max`.
      float_max: 1.0 or 255.0; None refuses floats, which say nothing of their scale.
      name: of the example, for messages.

    Returns:
      uint8 [H,W,C]; floats are rounded to the nearest of the 256 levels.

    Raises:
      ValueError: another shape, another type, or a value outside the range.
    """
    try:
        values = np.asarray(values)
    except ValueError as error:  # rows of unequal length
        raise ValueError(f"image of {name}: must be an array [H,W,C] or [H,W] ({error})") from None
    check(f"shape of {name}", values.shape, values.ndim in (2, 3), "[H,W,C] or [H,W]")
    values = values[..., None] if values.ndim == 2 else values
    turned = values.shape[-1] not in MODES and values.shape[0] in MODES
    check(f"shape of {name}", values.shape, not turned, "[H,W,C], channels last: transpose the images")
    check_pixel_type(name, values.dtype, float_max)
    if values.dtype == np.uint8:
        return np.array(values)
    top = 255 if values.dtype.kind in "iu" else float_max
    low, high = values.min(initial=0), values.max(initial=0)
    check(f"pixels of {name}", [float(low), float(high)], bool(0 <= low and high <= top), f"in 0..{top:g}")
    return np.round(values * (255 / top)).astype(np.uint8)


def check_pixel_type(name: str, kind: np.dtype, float_max: float | None) -> None:
    """Raises ValueError unless pixels of this type can be read with this `data.options.float_max`."""
    check("data.options.float_max", float_max, float_max in (None, 1.0, 255.0), "1.0 or 255.0, the largest pixel value")
    check(name, str(kind), kind.kind in "iuf", "pixels: uint8, other integers in 0..255, or floats")
    if kind.kind == "f" and float_max is None:
        remedy = "uint8, or of a scale that is said: data.options.float_max=1.0 for floats in 0..1, 255.0 for 0..255"
        raise ValueError(f"{name} = {str(kind)!r}: must be {remedy}")
