"""XCiT-N12/16: the light recipe on ImageNet, or a small sibling on rendered 32x32 shapes.

    python -m robust_vit.main --config=configs/xcit_n12.py --workdir=runs/xcit_n12
    python -m robust_vit.main --config=configs/xcit_n12.py:synthetic --workdir=runs/small

The ImageNet run has not been measured in this project; a published run is imagenet100/light_recipe/xcit_n12.

Reference: El-Nouby et al. 2021, arXiv 2106.09681.
"""

from robust_vit import recipes


def get_config(data: str = "imagenet"):
    if data == "synthetic":
        return recipes.build("xcit_nano_12_p4_32", data, depth=4)
    return recipes.build("xcit_nano_12_p16_224", data)
