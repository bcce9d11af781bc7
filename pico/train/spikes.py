"""A detector of loss spikes: how far a loss lies above the ones before it, in robust deviations."""

import math
import statistics
from collections import deque

WINDOW = 64
THRESHOLD = 6.0


class SpikeDetector:
    """Told the losses in order, says which of them is a spike.

    The baseline is the median of the last `window` losses, the deviation 1.4826 times their median absolute deviation,
    as in `pico.analysis.metrics.gradient_noise.loss_spike_score`; so one spike does not hide the next. It watches only.
    """

    def __init__(self, window: int = WINDOW, threshold: float = THRESHOLD) -> None:
        self.threshold = threshold
        self._before: deque[float] = deque(maxlen=window)

    def baseline(self, loss: float) -> float | None:
        """The median before, where `loss` is a spike above it; else None. There are no spikes before a full window."""
        found = None
        if len(self._before) == self._before.maxlen:
            centre = statistics.median(self._before)
            deviation = 1.4826 * statistics.median(abs(one - centre) for one in self._before)
            if loss > centre + self.threshold * deviation + 1e-9 * abs(centre):
                found = centre
        if math.isfinite(loss):
            self._before.append(loss)
        return found
