"""DeiT-S/16: the light recipe on ImageNet, or a small sibling on rendered 32x32 shapes.

    python -m robust_vit.main --config=configs/deit_s.py --workdir=runs/deit_s
    python -m robust_vit.main --config=configs/deit_s.py:synthetic --workdir=runs/small

The run on ImageNet is imagenet/light_recipe/deit_s_eps4's; it has not been measured in this project.

Reference: Touvron et al. 2021, arXiv 2012.12877.
"""

from robust_vit import recipes


def get_config(data: str = "imagenet"):
    if data == "synthetic":
        return recipes.build("deit_tiny_patch16_224", data, patch_size=4, depth=4)
    return recipes.build("deit_small_patch16_224", data)
