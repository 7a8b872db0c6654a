"""What could stand in Fira's place, at its bytes: how fast the subspace moves, and more ranks."""

from experiments.reproduce.tables import Table

TABLE = Table(
    "What is better than Fira as released, with no more bytes of state?",
    (
        "fira", "fira_tracked", "fira_4bit_rank_x4", "fira_4bit_rank_x4_tracked_gap10",
        "fira_tracked_gap20", "fira_4bit_rank_x4_tracked_gap20", "fira_tracked_gap5",
        "fira_randomized_gap10_carried", "fira_tracked_gap10_kept", "fira_carried", "fira_gap10",
        "fira_gap20", "fira_8bit_rank_x4_tracked_gap10", "fira_tracked_gap10_paper",
        "fira_tracked_scale_0.125", "fira_tracked_scale_0.0625", "fira_orthogonal",
        "fira_orthogonal_rms_0.025", "fira_orthogonal_rms_0.2", "fira_orthogonal_3_steps",
        "fira_orthogonal_2_steps", "fira_orthogonal_gap20",
        "fira_tracked_whitened", "fira_tracked_sinkhorn", "fira_tracked_of_whitened",
        "fira_tracked_of_sinkhorn", "apollo_mini", "racs", "subtrack", "alice_0", "sumo",
        "sumo_tracked_gap10", "swan", "muon",
    ),
    beside=("fira", "fira_tracked", "fira_orthogonal"),
    seeds=5,
)  # fmt: skip
