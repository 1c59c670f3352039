"""CaiT-S12, layer scale from 1: the light recipe on ImageNet, or a small sibling on rendered 32x32 shapes.

    python -m robust_vit.main --config=configs/cait_s12.py --workdir=runs/cait_s12
    python -m robust_vit.main --config=configs/cait_s12.py:synthetic --workdir=runs/small

The run on ImageNet is imagenet/light_recipe/cait_s12_eps4's; it has not been measured in this project.

Reference: Touvron et al. 2021, arXiv 2103.17239; S12 by Debenedetti et al. 2023.
"""

from robust_vit import recipes


def get_config(data: str = "imagenet"):
    if data == "synthetic":
        return recipes.build("cait_s12_224", data, patch_size=4, width=192, heads=4, depth=4)
    return recipes.build("cait_s12_224", data)
