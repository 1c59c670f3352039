"""Weights to and from PyTorch state dicts: strict, with a report, and without running pickled code."""
