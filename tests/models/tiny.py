"""One small representative of each family, for the tests that every model must pass. Add a row with each new family."""

# name -> overrides; images of at most 64 pixels, few blocks, 10 classes
TINY = {
    "vit": dict(depth=2, width=32, heads=4, patch_size=4, image_size=16, num_classes=10, pooling="mean", drop_path=0.1),
    "deit_tiny_distilled_patch16_224": dict(
        depth=2, width=32, heads=2, patch_size=8, image_size=16, num_classes=10, drop_path=0.1
    ),
    "masked_autoencoder": dict(
        depth=1,
        width=32,
        heads=2,
        patch_size=4,
        image_size=16,
        num_classes=10,
        drop_path=0.1,
        decoder_width=16,
        decoder_depth=1,
        decoder_heads=2,
    ),
    "vit_small_cvst": dict(depth=1, width=32, heads=2, image_size=32, num_classes=10, stem_width=8, drop_path=0.1),
    "swin": dict(
        depths=(2, 1),
        width=16,
        heads=(2, 4),
        patch_size=2,
        window_size=4,
        image_size=16,
        num_classes=10,
        drop_path=0.1,
    ),
    "sparse_swin": dict(
        depths=(2, 2),
        ratios=((0.3, 0.5), (0.0, 0.0)),
        width=16,
        heads=(2, 4),
        patch_size=2,
        window_size=4,
        image_size=16,
        num_classes=10,
        drop_path=0.1,
    ),
    "efficientvit_b0": dict(
        widths=(8, 8, 16, 16),
        depths=(1, 1, 1, 1),
        strides=(2, 2, 2, 2),
        head_dim=8,
        head_widths=(32, 32),
        image_size=32,
        num_classes=10,
    ),
    "mobilevit_xxs": dict(
        stem_width=8,
        widths=(8, 16),
        blocks=(1, 1),
        strides=(2, 2, 2),
        transformer_widths=(16,),
        transformer_depths=(2,),
        head_width=32,
        image_size=24,
        num_classes=10,
        drop_path=0.1,
    ),
    "cait": dict(
        depth=2, width=32, heads=4, patch_size=4, image_size=16, num_classes=10, layer_scale=0.5, drop_path=0.1
    ),
    "xcit": dict(depth=2, width=32, heads=4, patch_size=4, image_size=16, num_classes=10, drop_path=0.1),
    "resnet50_32": dict(depths=(1, 2), widths=(4, 8), stem_width=8, image_size=16, num_classes=10, drop_path=0.1),
    "convnext_tiny": dict(depths=(1, 2), widths=(8, 16), layer_scale=0.5, image_size=32, num_classes=10, drop_path=0.1),
}
