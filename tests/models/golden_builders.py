"""Which of our models each reference dump belongs to: tag -> (name, overrides)."""

MOBILEVIT = dict(
    stem_width=8,
    widths=(8, 8, 16, 16, 24),
    blocks=(1, 2, 1, 1, 1),
    transformer_widths=(16, 24, 32),
    transformer_depths=(2, 1, 1),
    head_width=40,
    num_classes=10,
)
VIT = dict(image_size=32, patch_size=8, width=48, depth=2, heads=3, num_classes=10)
SPARSE = dict(image_size=32, patch_size=2, window_size=4, width=24, heads=(2, 4), num_classes=10)

GOLDEN = {
    "micro_vit": ("vit_tiny_patch16_224", VIT),
    "micro_vit_gap": ("vit_tiny_patch16_224", dict(pooling="mean", **VIT)),
    "micro_vit_cvst": ("vit_small_cvst", dict(image_size=32, depth=1, num_classes=10)),
    "micro_deit": ("deit_tiny_patch16_224", VIT),
    "micro_deit_distilled": ("deit_tiny_distilled_patch16_224", VIT),
    "micro_swin": (
        "swin",
        dict(image_size=32, patch_size=2, window_size=4, width=24, depths=(2, 2), heads=(2, 4), num_classes=10),
    ),
    "micro_swin_pad": (
        "swin",
        dict(image_size=40, patch_size=4, window_size=4, width=24, depths=(2, 2), heads=(2, 4), num_classes=10),
    ),
    "micro_sparse_swin": (
        "sparse_swin",
        dict(ratios=((0.3, 0.3), (0.5, 0.5)), depths=(2, 2), **SPARSE),
    ),
    "micro_sparse_swin_deep": (
        "sparse_swin",
        dict(ratios=((0.0, 0.2, 0.4, 0.4, 0.6, 0.8), (0.0, 0.0)), depths=(6, 2), **SPARSE),
    ),
    "micro_efficientvit_32": (
        "efficientvit_b0",
        dict(
            image_size=32,
            widths=(8, 16, 16, 32, 32),
            depths=(1, 1, 2, 1, 1),
            head_dim=8,
            head_widths=(48, 32),
            num_classes=10,
        ),
    ),
    "micro_efficientvit_64": (
        "efficientvit_b0",
        dict(
            image_size=64,
            widths=(8, 16, 16, 32, 32),
            depths=(1, 1, 2, 1, 1),
            head_dim=8,
            head_widths=(48, 32),
            num_classes=10,
        ),
    ),
    "micro_mobilevit_64": ("mobilevit_xxs", dict(image_size=64, num_classes=10)),
    "micro_mobilevit_tiny_32": ("mobilevit_xxs", dict(image_size=32, **MOBILEVIT)),
    "micro_mobilevit_tiny_48": ("mobilevit_xxs", dict(image_size=48, **MOBILEVIT)),
    "micro_cait": (
        "cait_s12_224",
        dict(image_size=32, patch_size=8, width=48, depth=2, heads=4, num_classes=10),
    ),
    "micro_xcit_p16": (
        "xcit_tiny_12_p16_224",
        dict(image_size=32, width=64, depth=2, heads=4, num_classes=10),
    ),
    "micro_xcit_p4": (
        "xcit_tiny_12_p16_224",
        dict(image_size=32, patch_size=4, width=64, depth=2, heads=4, num_classes=10),
    ),
    "micro_xcit_nano_p4": (
        "xcit_nano_12_p16_224",
        dict(image_size=32, patch_size=4, width=64, depth=2, heads=4, num_classes=10),
    ),
    "micro_resnet": (
        "resnet50",
        dict(image_size=32, depths=(1, 1, 2, 1), widths=(8, 16, 24, 32), num_classes=10),
    ),
    "micro_resnet_gelu": (
        "resnet50_gelu",
        dict(image_size=32, depths=(1, 1, 2, 1), widths=(8, 16, 24, 32), num_classes=10),
    ),
    "micro_convnext": (
        "convnext_tiny",
        dict(image_size=64, depths=(1, 1, 2, 1), widths=(16, 32, 48, 64), num_classes=10),
    ),
    "micro_convnext_cvst": (
        "convnext_tiny_cvst",
        dict(image_size=64, depths=(1, 1, 1, 1), widths=(96, 32, 32, 32), num_classes=10),
    ),
}
