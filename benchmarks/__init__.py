"""Measurements: each module prints a table and writes its JSON to docs/results."""
