"""Fira beside GaLore from rank to rank, and both beside AdamW."""

from experiments.reproduce.tables import Table

TABLE = Table(
    "Is Fira below GaLore at every rank, and at or below AdamW?",
    ("fira", "galore", "adamw"),
    beside=("fira", "galore"),
)
