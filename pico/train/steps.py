"""At which steps the model is kept."""


def checkpoint_steps(steps: int, every: int) -> list[int]:
    """0, 1, 2, 4, ... up to `every`, then the multiples of `every`, and the last step; ascending.

    Step t is the model after t updates. Models change fastest at the start, so that is where checkpoints lie densest
    (as Pythia's, arXiv 2304.01373).
    """
    powers = [1 << exponent for exponent in range(every.bit_length()) if 1 << exponent <= every]
    kept = {0, *powers, *range(every, steps + 1, every), steps}
    return sorted(step for step in kept if step <= steps)
