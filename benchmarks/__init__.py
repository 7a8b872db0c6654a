"""Measurements: each module prints a table and writes its JSON to docs/results."""

import experiments  # noqa: F401  # has LAPACK use one thread, before it is loaded
