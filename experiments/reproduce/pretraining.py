"""Every method on the same text, from the same weights."""

from experiments.reproduce.tables import Table

TABLE = Table(
    "Which method ends with the lowest loss, and with how many bytes of state?",
    (
        "fira", "galore", "adamw", "apollo", "alice_0", "subtrack", "racs", "apollo_mini", "muon",
        "adamw_b2_0.95", "adamw_wd_0.1", "optax_galore", "fira_paper", "galore2", "q_galore",
        "frugal", "gradnormlorp", "adarankgrad", "lotus", "vlorp", "dct_adamw", "trion", "swan",
        "sinkgd", "scale", "gwt", "ldadam", "alice", "m_fac", "sumo",
        "lora", "relora", "dora", "factorized", "cola", "sltrain", "lost",
    ),
    beside=("fira", "adamw"),
)  # fmt: skip
