"""Fixtures of all tests."""

import os

from hypothesis import settings

# Before torch is imported anywhere: no test may depend on the number of cores, reach a hub, or report home.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # what tests compute is small: threads only wait for one another
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")

# The same examples in every run: what CI says of a commit is a property of the commit. To look for new ones:
#   HYPOTHESIS_PROFILE=explore make test
settings.register_profile("fixed", derandomize=True)
settings.register_profile("explore", derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))
