"""The short version of ``tests/chaos.py``: processes of their own, told to leave and damaged."""

import pytest

from tests.chaos import Chaos, devices, storm


def test_a_disturbed_run_ends_as_the_undisturbed_one(tmp_path):
    said: list[str] = []
    found = storm(Chaos(tmp_path, 100, 1), ["SIGTERM", "damaged checkpoint"], 10.0, said.append)
    assert found["disturbances"] == 2
    assert found["largest_difference"] == 0.0


@pytest.mark.slow
def test_a_run_on_other_numbers_of_devices_ends_as_on_one(tmp_path):
    assert devices(Chaos(tmp_path, 40, 1))["largest_difference"] < 1e-5
