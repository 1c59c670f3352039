"""The architectures: one family a file, each ending in a dict MODELS from names to its variants."""
