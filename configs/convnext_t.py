"""ConvNeXt-T: the light recipe on ImageNet, or a small sibling on rendered 32x32 shapes.

    python -m robust_vit.main --config=configs/convnext_t.py --workdir=runs/convnext_t
    python -m robust_vit.main --config=configs/convnext_t.py:synthetic --workdir=runs/small

The run on ImageNet is imagenet/light_recipe/convnext_t_eps4's; it has not been measured in this project.

Reference: Liu et al. 2022, arXiv 2201.03545.
"""

from robust_vit import recipes


def get_config(data: str = "imagenet"):
    if data == "synthetic":
        return recipes.build("convnext_tiny", data, depths=(1, 1, 2, 1))
    return recipes.build("convnext_tiny", data)
