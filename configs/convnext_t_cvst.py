"""ConvNeXt-T with a convolutional stem: the light recipe on ImageNet, or a small sibling on rendered 32x32 shapes.

    python -m robust_vit.main --config=configs/convnext_t_cvst.py --workdir=runs/convnext_t_cvst
    python -m robust_vit.main --config=configs/convnext_t_cvst.py:synthetic --workdir=runs/small

The ImageNet run has not been measured in this project; a published run is imagenet/singh2023/convnext_t_cvst.

Reference: Singh, Croce & Hein 2023, arXiv 2303.01870.
"""

from robust_vit import recipes


def get_config(data: str = "imagenet"):
    if data == "synthetic":
        return recipes.build("convnext_tiny_cvst", data, depths=(1, 1, 2, 1))
    return recipes.build("convnext_tiny_cvst", data)
