"""Continuous batching: a tile of slots that is refilled as points are done. Knows no attack's constants."""
