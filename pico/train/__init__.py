"""Pretraining: the loop, its schedules, what is captured and kept, and its spread over processes."""
