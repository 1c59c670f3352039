"""Published figures, to be laid under one's own: clean accuracy and accuracy under AutoAttack of models of the field.

They are what papers and RobustBench print, measured by others; nothing here was measured by this package.
"""

from collections.abc import Iterator
from typing import NamedTuple

from robust_vit.errors import check


class Published(NamedTuple):
    """One model of a paper.

    Attributes:
      data: "imagenet", "cifar10" or "cifar100".
      norm, epsilon: of the threat model.
      model: as its source calls it.
      clean, robust: fractions; robust under AutoAttack, or under a stronger attack where RobustBench lists one.
      source: who says so.
      architecture: name of the same architecture in `models.names()`, "" where there is none.
    """

    data: str
    norm: str
    epsilon: float
    model: str
    clean: float
    robust: float
    source: str
    architecture: str = ""


LIGHT = "Debenedetti et al. 2023, arXiv 2209.07399"
SINGH = "Singh et al. 2023, arXiv 2303.01870"
LIU = "Liu et al. 2023, arXiv 2302.14301"
MIMIR = "MIMIR, arXiv 2312.04960"
BAI = "Bai et al. 2021, arXiv 2111.05464"
MO = "Mo et al. 2022, arXiv 2210.07540"
BOARD = "RobustBench"

# data, epsilon * 255 -> rows of (model, clean %, robust %, source, architecture); all Linf.
_ROWS: dict[tuple[str, int], list[tuple[str, float, float, str, str]]] = {
    ("imagenet", 4): [
        ("XCiT-S12", 72.34, 41.78, LIGHT, "xcit_small_12_p16_224"),
        ("XCiT-M12", 74.04, 45.24, LIGHT, "xcit_medium_12_p16_224"),
        ("XCiT-L12", 73.76, 47.60, LIGHT, "xcit_large_12_p16_224"),
        ("ConvNeXt-T", 71.64, 44.44, LIGHT, "convnext_tiny"),
        ("ResNet-50 (GELU)", 66.54, 35.12, LIGHT, "resnet50_gelu"),
        ("ResNet-50", 66.77, 26.41, BAI, "resnet50"),
        ("DeiT-S", 66.50, 35.50, BAI, "deit_small_patch16_224"),
        ("ConvNeXt-T-CvSt", 72.72, 49.46, SINGH, "convnext_tiny_cvst"),
        ("ViT-S-CvSt", 72.56, 48.08, SINGH, "vit_small_cvst"),
        ("ViT-B-CvSt", 76.30, 54.66, SINGH, "vit_base_cvst"),
        ("ConvNeXt-B-CvSt", 75.90, 56.14, SINGH, "convnext_base_cvst"),
        ("ConvNeXt-L-CvSt", 77.00, 57.70, SINGH, ""),
        ("ConvNeXt-L", 78.02, 58.48, LIU, ""),
        ("Swin-B", 76.16, 56.16, LIU, "swin_base_patch4_window7_224"),
        ("Swin-L", 78.92, 59.56, LIU, ""),
        ("Swin-B (MIMIR)", 76.62, 55.90, MIMIR, "swin_base_patch4_window7_224"),
        ("Swin-L (MIMIR)", 78.62, 59.68, MIMIR, ""),
        ("ViT-B (ARD, PRM)", 68.38, 34.40, MO, "vit_base_patch16_224"),
        ("Swin-B (ARD, PRM)", 74.66, 38.30, MO, "swin_base_patch4_window7_224"),
    ],
    ("imagenet", 8): [
        ("XCiT-S12", 63.46, 25.00, LIGHT, "xcit_small_12_p16_224"),
        ("XCiT-M12", 67.80, 26.58, LIGHT, "xcit_medium_12_p16_224"),
        ("XCiT-L12", 69.24, 28.74, LIGHT, "xcit_large_12_p16_224"),
        ("ConvNeXt-T", 65.96, 27.98, LIGHT, "convnext_tiny"),
        ("ResNet-50 (GELU)", 58.08, 17.15, LIGHT, "resnet50_gelu"),
    ],
    ("cifar10", 8): [
        ("XCiT-S12", 90.06, 56.14, LIGHT, ""),
        ("XCiT-M12", 91.30, 57.27, LIGHT, ""),
        ("XCiT-L12", 91.73, 57.58, LIGHT, ""),
        ("ResNet-50", 84.80, 41.56, LIGHT, ""),
        ("WRN-28-10 (Wang 2023)", 92.44, 67.31, BOARD, ""),
        ("WRN-70-16 (Wang 2023)", 93.25, 70.69, BOARD, ""),
        ("WRN-28-10 (Cui, 20M)", 92.16, 67.73, BOARD, ""),
        ("RaWRN-70-16 (Peng)", 93.27, 71.07, BOARD, ""),
        ("WRN-82-8 (Bartoldson)", 93.11, 71.59, BOARD, ""),
        ("WRN-94-16 (Bartoldson)", 93.68, 73.71, BOARD, ""),
    ],
    ("cifar100", 8): [
        ("XCiT-S12", 67.34, 32.19, LIGHT, ""),
        ("XCiT-M12", 69.21, 34.21, LIGHT, ""),
        ("XCiT-L12", 70.76, 35.08, LIGHT, ""),
        ("ResNet-50", 61.28, 22.01, LIGHT, ""),
        ("WRN-28-10 (Wang 2023)", 72.58, 38.83, BOARD, ""),
        ("WRN-70-16 (Wang 2023)", 75.22, 42.67, BOARD, ""),
    ],
}


def table() -> Iterator[Published]:
    """Every row."""
    for (data, levels), rows in _ROWS.items():
        for model, clean, robust, source, architecture in rows:
            yield Published(data, "linf", levels / 255, model, clean / 100, robust / 100, source, architecture)


def of(data: str, norm: str = "linf", epsilon: float = 8 / 255) -> list[Published]:
    """The rows of a data set and threat model.

    Raises:
      ValueError: if there is none; the line names those that there are.
    """
    found = [row for row in table() if (row.data, row.norm) == (data, norm) and abs(row.epsilon - epsilon) < 1e-6]
    known = ", ".join(f"{name} linf-{levels}/255" for name, levels in _ROWS)
    check("published", f"{data} {norm}-{epsilon:.4g}", bool(found), f"one of {known}")
    return found
