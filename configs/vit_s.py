"""ViT-S/16: the light recipe on ImageNet, or a small sibling on rendered 32x32 shapes.

    python -m robust_vit.main --config=configs/vit_s.py --workdir=runs/vit_s
    python -m robust_vit.main --config=configs/vit_s.py:synthetic --workdir=runs/small

The ImageNet run has not been measured in this project; a published run is imagenet/singh2023/vit_s.

Reference: Dosovitskiy et al. 2021, arXiv 2010.11929.
"""

from robust_vit import recipes


def get_config(data: str = "imagenet"):
    if data == "synthetic":
        return recipes.build("vit_tiny_patch16_224", data, patch_size=4, depth=4)
    return recipes.build("vit_small_patch16_224", data)
