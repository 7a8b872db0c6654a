"""Flags of XLA for processes that tests start."""

import os


def xla_flags(*more: str) -> str:
    """Those that this process has, and more."""
    return " ".join([os.environ.get("XLA_FLAGS", ""), *more]).strip()
