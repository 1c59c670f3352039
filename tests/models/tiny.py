"""One small representative of each family, for the tests that every model must pass. Add a row with each new family."""

# name -> overrides; images of at most 64 pixels, few blocks, 10 classes
TINY = {
    "vit": dict(
        depth=2, width=32, heads=4, patch_size=4, image_size=16, num_classes=10, pooling="mean", drop_path=0.1
    ),
    "deit_tiny_distilled_patch16_224": dict(
        depth=2, width=32, heads=2, patch_size=8, image_size=16, num_classes=10, drop_path=0.1
    ),
    "vit_small_cvst": dict(depth=1, width=32, heads=2, image_size=32, num_classes=10, stem_width=8, drop_path=0.1),
}
