"""Patches on paper: a page with as many copies as fit, each at a stated size."""

import pathlib
from typing import Any

import numpy as np

from robust_vit.errors import check, lookup

PAPERS = {"a4": (297.0, 210.0), "a3": (420.0, 297.0), "letter": (279.4, 215.9)}  # height and width in millimetres
INCH = 25.4


def sheet(
    pixels: Any,
    path: str | pathlib.Path | None = None,
    *,
    mask: np.ndarray | None = None,
    width_mm: float,
    paper: str = "a4",
    dpi: int = 300,
    margin_mm: float = 10.0,
    gap_mm: float = 5.0,
) -> np.ndarray:
    """Lays copies of a patch out on white paper.

    Args:
      pixels: [h,w,C] in [0,1].
      path: file to write, .png or .pdf; it states its resolution, so that a printer at 100 % keeps the size.
      mask: [h,w], white where false.
      width_mm: width of each copy on paper; its height follows.
      paper: "a4", "a3" or "letter".
      dpi: resolution.
      margin_mm, gap_mm: at the edges, and between copies.

    Returns:
      The page, [H,W,3] uint8.

    Raises:
      ValueError: for a size of 0, or one that does not fit on the paper.
    """
    from PIL import Image

    pixels = np.asarray(pixels, np.float64)
    told = list(pixels.shape)
    check(
        "pixels.shape", told, pixels.ndim == 3 and pixels.shape[-1] in (1, 3) and pixels.size > 0, "[h,w,1] or [h,w,3]"
    )
    height_mm = width_mm * pixels.shape[0] / pixels.shape[1]
    tall, wide = lookup("paper", paper, PAPERS)
    check("dpi", dpi, isinstance(dpi, int) and 1 <= dpi <= 2400, "a whole number from 1 to 2400")
    room = tall - 2 * margin_mm, wide - 2 * margin_mm
    fits = 0 < width_mm <= room[1] and height_mm <= room[0]
    check("width_mm", width_mm, fits, f"above 0, and the copy within {room[1]:g} by {room[0]:g} mm of {paper}")
    size = [max(1, round(side / INCH * dpi)) for side in (height_mm, width_mm)]
    solid = np.repeat(pixels, 3, -1) if pixels.shape[-1] == 1 else pixels
    if mask is not None:
        check("mask.shape", np.shape(mask), np.shape(mask) == solid.shape[:2], f"{solid.shape[:2]}")
        solid = np.where(np.asarray(mask, bool)[..., None], solid, 1.0)
    image = Image.fromarray(np.round(255 * np.clip(solid, 0, 1)).astype(np.uint8))
    copy = np.asarray(image.resize((size[1], size[0]), Image.Resampling.NEAREST))
    page = np.full((round(tall / INCH * dpi), round(wide / INCH * dpi), 3), 255, np.uint8)
    margin, gap = (round(mm / INCH * dpi) for mm in (margin_mm, gap_mm))
    for top in range(margin, page.shape[0] - margin - size[0] + 1, size[0] + gap):
        for left in range(margin, page.shape[1] - margin - size[1] + 1, size[1] + gap):
            page[top : top + size[0], left : left + size[1]] = copy
    if path is not None:
        path = pathlib.Path(path)
        check("path", str(path), path.suffix.lower() in (".png", ".pdf"), "a .png or .pdf file")
        Image.fromarray(page).save(
            path, **({"resolution": dpi} if path.suffix.lower() == ".pdf" else {"dpi": (dpi, dpi)})
        )
    return page
