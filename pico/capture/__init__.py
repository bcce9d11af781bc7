"""Anybody's checkpoints as a run that the analysis reads: pico runs, the published Pico layout, Hugging Face models."""
