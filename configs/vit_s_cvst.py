"""ViT-S with a convolutional stem: the light recipe on ImageNet, or a small sibling on rendered 32x32 shapes.

    python -m robust_vit.main --config=configs/vit_s_cvst.py --workdir=runs/vit_s_cvst
    python -m robust_vit.main --config=configs/vit_s_cvst.py:synthetic --workdir=runs/small

The ImageNet run has not been measured in this project; a published run is imagenet/singh2023/vit_s_cvst.

Reference: Singh, Croce & Hein 2023, arXiv 2303.01870.
"""

from robust_vit import recipes


def get_config(data: str = "imagenet"):
    if data == "synthetic":
        return recipes.build("vit_small_cvst", data, width=192, heads=3, depth=4, stem_width=24)
    return recipes.build("vit_small_cvst", data)
