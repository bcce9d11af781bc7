"""Keeps tracebacks out of Prefect's terminal log: `flows.stage` prints the one that matters, once, at the end."""

import copy
import logging

from pico.errors import PicoError


class _WithoutTraceback(logging.Filter):
    """Replaces a record that carries a traceback by one that does not, for one handler only."""

    def __init__(self, handler: logging.Handler, *, only_domain_errors: bool) -> None:
        super().__init__()
        self.handler, self.only_domain_errors = handler, only_domain_errors

    def filter(self, record: logging.LogRecord) -> bool:
        raised = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if raised is None or (self.only_domain_errors and not isinstance(raised, PicoError)):
            return True
        short = copy.copy(record)
        short.exc_info = short.exc_text = None
        self.handler.handle(short)
        return False


def shorten_tracebacks() -> None:
    """Call it once in a flow run: the terminal gets no traceback, the UI one for all but domain errors."""
    from prefect.logging.handlers import APILogHandler, PrefectConsoleHandler

    for name in ("prefect", "prefect.flow_runs", "prefect.task_runs", ""):
        for handler in logging.getLogger(name).handlers:
            if any(isinstance(known, _WithoutTraceback) for known in handler.filters):
                continue
            if isinstance(handler, PrefectConsoleHandler):
                handler.addFilter(_WithoutTraceback(handler, only_domain_errors=False))
            elif isinstance(handler, APILogHandler):
                handler.addFilter(_WithoutTraceback(handler, only_domain_errors=True))
