"""Errors that Orbax logs as tracebacks and then raises: they are said once, by who catches them.

A full disk fails in several of its threads, and each logs the whole way that the error took: a
thousand lines above the one that helps.
"""

import logging
import os
import traceback


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a record is not the traceback of an error that passed through Orbax."""
    error = record.exc_info[1] if record.exc_info else None
    if error is None:
        return True
    part = f"{os.sep}orbax{os.sep}"
    return not any(
        part in frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)
    )


def raise_without_logging() -> None:
    """Leaves such tracebacks out of the logs of this process."""
    for name in ("absl", "asyncio"):  # asyncio logs what a further thread raised, if nobody asks
        logging.getLogger(name).addFilter(_is_news)
