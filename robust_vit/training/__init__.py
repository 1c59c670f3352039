"""Training: schedules, optimiser, state, step, checkpoints, and the loop that joins them (begin at `loop.run`)."""
