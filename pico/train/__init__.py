"""Pretraining: the loop, the recipe that says what it does, checkpoints, captures, and workers."""
