"""Every option of a decoder, away from its default: a new one is tested without being named in a test."""

from typing import Any, get_args

from pico.config.base import fields_of
from pico.config.model import OPTIONS, DecoderConfig


def departures() -> list[dict[str, Any]]:
    """One option a time, at each of its values but the default."""
    fields = fields_of(DecoderConfig)
    return [
        {name: value}
        for name, default in OPTIONS.items()
        for value in get_args(fields[name].annotation) or (False, True)
        if value != default
    ]
