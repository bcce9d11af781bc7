"""The cost of a suite before it is trained: memory, time, disk; see `pico plan`."""
