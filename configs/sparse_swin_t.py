"""SparseViT on Swin-T: the light recipe on ImageNet, or a small sibling on rendered 32x32 shapes.

    python -m robust_vit.main --config=configs/sparse_swin_t.py --workdir=runs/sparse_swin_t
    python -m robust_vit.main --config=configs/sparse_swin_t.py:synthetic --workdir=runs/small

The ImageNet run has not been measured in this project.

Reference: Chen et al. 2023, arXiv 2303.17605.
"""

from robust_vit import recipes


def get_config(data: str = "imagenet"):
    if data == "synthetic":
        return recipes.build(
            "sparse_swin_tiny_patch4_window7_224",
            data,
            patch_size=2,
            window_size=4,
            depths=(2, 2),
            width=48,
            heads=(2, 4),
            ratios=((0.3, 0.5), (0.0, 0.0)),
        )
    return recipes.build("sparse_swin_tiny_patch4_window7_224", data)
