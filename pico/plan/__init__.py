"""What a run will cost before it is started: memory, time, disk; see `pico plan`."""
