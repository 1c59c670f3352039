"""EfficientViT-B1: the light recipe on ImageNet, or a small sibling on rendered 32x32 shapes.

    python -m robust_vit.main --config=configs/efficientvit_b1.py --workdir=runs/efficientvit_b1
    python -m robust_vit.main --config=configs/efficientvit_b1.py:synthetic --workdir=runs/small

The ImageNet run has not been measured in this project.

Reference: Cai et al. 2023, arXiv 2205.14756.
"""

from robust_vit import recipes


def get_config(data: str = "imagenet"):
    if data == "synthetic":
        return recipes.build("efficientvit_b0", data)
    return recipes.build("efficientvit_b1", data)
