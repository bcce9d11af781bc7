"""How many workers train: always as many as the settings say."""

from typing import Any

from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy


class FixedWorkers(FixedScalingPolicy):
    """Ray's own, but it does not ask Ray's autoscaling coordinator for the resources first.

    The coordinator is one more process, and a `fit` waits for its start (4 s). It settles who gets what where Ray Data
    and Ray Train share a cluster; ours asks for a placement group, which a cluster that scales by demand sees, too.
    """

    def after_controller_start(self, train_run_context: Any) -> None:
        """Asks for nothing."""

    def _maybe_send_resource_request(self) -> None:
        """Asks for nothing."""
