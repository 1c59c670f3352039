"""XCiT-S12/16: the light recipe on ImageNet, or a small sibling on rendered 32x32 shapes.

    python -m robust_vit.main --config=configs/xcit_s12.py --workdir=runs/xcit_s12
    python -m robust_vit.main --config=configs/xcit_s12.py:synthetic --workdir=runs/small

The run on ImageNet is imagenet/light_recipe/xcit_s12_eps4's; it has not been measured in this project.

Reference: El-Nouby et al. 2021, arXiv 2106.09681.
"""

from robust_vit import recipes


def get_config(data: str = "imagenet"):
    if data == "synthetic":
        return recipes.build("xcit_small_12_p4_32", data, depth=2)
    return recipes.build("xcit_small_12_p16_224", data)
