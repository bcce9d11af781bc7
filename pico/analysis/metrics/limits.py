"""Refusal of settings that a metric cannot work with: the one kind of error that a metric raises of its own."""

from typing import Any

from pico.errors import PicoError


def require(holds: bool, metric: str, setting: str, value: Any, wanted: str) -> None:
    """Raises PicoError naming the metric, the setting and its value, unless the condition holds."""
    if not holds:
        raise PicoError(f"metric {metric!r}: {setting} = {value!r}", mend=f"{setting} must be {wanted}")
