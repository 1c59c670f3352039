"""Attacks that transfer: made on a surrogate, meant for a classifier that nobody differentiates.

    attack = attacks.transfer(epsilon=16 / 255, diversity=0.5, translation=7, scales=5, tokens="tgr")
    adversarial = attack(keys, surrogate, images, labels)      # then ask the victim

Each ingredient changes what the gradient is taken of or how it flows back, and they combine: `views` change what the
surrogate is shown, `filters` the gradient on its way back, through the image or, of transformers, through the named
points of their blocks (`models.parts.taps`). `analysis.transfer` measures how far attacks go between models.
"""
