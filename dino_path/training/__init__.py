"""Training: objective, schedules, step, loop, checkpoints, monitors."""
