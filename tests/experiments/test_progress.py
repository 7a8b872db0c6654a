"""What a run shows of itself while it goes, on a terminal and in a log file."""

import io

import pytest
from rich.console import Console

from experiments.training.progress import ProgressLine


class Clock:
    """Seconds that pass only when told."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


def shown(monkeypatch, width: int, terminal: bool, seconds: float = 0.5) -> str:
    clock, out = Clock(), io.StringIO()
    monkeypatch.setattr("experiments.training.progress.time", clock)
    console = Console(file=out, width=width, force_terminal=terminal, legacy_windows=False)
    with ProgressLine(400, console=console) as line:
        line.tokens_per_step = 1000
        for step in range(1, 401):
            clock.now += seconds
            line.update(step, 2.5)
            if step % 10 == 0:
                clock.now += 3.0  # an evaluation, which is not training
                line.skip_time()
    return out.getvalue()


def test_a_log_file_gets_one_line_a_minute_with_rate_and_time_left(monkeypatch):
    lines = shown(monkeypatch, 80, terminal=False).splitlines()
    assert len(lines) == pytest.approx((400 * 0.5 + 40 * 3.0) / 60, abs=1)
    assert lines[0].startswith("step ")
    assert "  2,000 tokens/s  0:0" in lines[0]
    assert lines[0].endswith(" left")
    assert lines[-1] == "step 400/400  loss 2.5000  2,000 tokens/s"
    assert not any(" 0 tokens/s" in line for line in lines)


def test_a_narrow_terminal_shows_whole_numbers(monkeypatch):
    text = shown(monkeypatch, 40, terminal=True)
    assert "400/400" in text
    assert "2,000 tokens/s" in text
    assert "…" not in text
