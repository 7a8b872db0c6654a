"""Fira with one of its parts changed, the learning rate searched for again."""

from experiments.reproduce.tables import Table

TABLE = Table(
    "What does each part of Fira contribute?",
    (
        "fira", "galore", "fira_no_limiter", "fira_clipped", "fira_matrix", "fira_paper",
        "fira_unscaled", "fira_svd", "fira_long", "fira_gap20", "fira_gap100",
        "fira_carried", "fira_scale_0.125", "fira_scale_0.5", "fira_gamma_1.001",
        "fira_gamma_1.1",
    ),
)  # fmt: skip
