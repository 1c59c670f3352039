"""MobileViT-S: the light recipe on ImageNet, or a small sibling on rendered 32x32 shapes.

    python -m robust_vit.main --config=configs/mobilevit_s.py --workdir=runs/mobilevit_s
    python -m robust_vit.main --config=configs/mobilevit_s.py:synthetic --workdir=runs/small

The run on ImageNet is imagenet/own/mobilevit_s_eps4's; it has not been measured in this project.

Reference: Mehta & Rastegari 2022, arXiv 2110.02178.
"""

from robust_vit import recipes


def get_config(data: str = "imagenet"):
    if data == "synthetic":
        return recipes.build("mobilevit_xxs", data)
    return recipes.build("mobilevit_s", data)
