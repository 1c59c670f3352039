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
SPARSE = dict(image_size=32, patch_size=2, window_size=4, width=24, heads=(2, 4), num_classes=10)

GOLDEN = {
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
}
