"""ResNet-50 with GELU: the light recipe on ImageNet, or a small sibling on rendered 32x32 shapes.

    python -m robust_vit.main --config=configs/resnet50_gelu.py --workdir=runs/resnet50_gelu
    python -m robust_vit.main --config=configs/resnet50_gelu.py:synthetic --workdir=runs/small

The run on ImageNet is imagenet/light_recipe/resnet50_gelu_eps4's; it has not been measured in this project.

Reference: He et al. 2016, arXiv 1512.03385; GELU by Bai et al. 2021, arXiv 2111.05464.
"""

from robust_vit import recipes


def get_config(data: str = "imagenet"):
    if data == "synthetic":
        return recipes.build("resnet50_gelu_32", data, depths=(1, 1, 1, 1))
    return recipes.build("resnet50_gelu", data)
