"""Fine-tuning runs in the tests' own folders."""

from pathlib import Path
from typing import Any

from experiments.training import finetune_config, finetuning
from experiments.training.metrics import read_metrics


def run(inputs: list[str], *flags: str) -> dict[str, Any]:
    """The summary of a run; nothing of one that was stopped before its end."""
    return finetuning.run(finetune_config.parse([*inputs, *flags]))


def run_stopped_and_continued(
    inputs: list[str], flags: tuple[str, ...], folder: Path, stop_after: int
) -> dict[str, Any]:
    """Runs once in ``whole`` and once, stopped in between, in ``parts``: the same to the bit."""
    whole = run(inputs, *flags, f"--output-dir={folder / 'whole'}")
    parts = (*flags, f"--output-dir={folder / 'parts'}")
    assert run(inputs, *parts, f"--stop-after={stop_after}") == {}
    assert run(inputs, *parts)["eval_loss"] == whole["eval_loss"]
    a, b = (
        [row["train_loss"] for row in read_metrics(folder / name / "metrics.jsonl")]
        for name in ("whole", "parts")
    )
    assert a == b
    return whole
