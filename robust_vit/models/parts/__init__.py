"""What the families are built of: layers, attention, convolutions, positions, stacks of equal blocks."""
