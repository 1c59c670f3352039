"""Traced programs: where the derivative of an image is lost in one, and how to evaluate it with other derivatives."""
