"""What ``make types`` checks strictly runs too, and leaves no public name out."""

import re
import runpy
from pathlib import Path

import fira_jax

SCRIPT = Path(__file__).with_name("typed_user.py")


def test_the_typed_user_runs_and_uses_every_public_name():
    named = runpy.run_path(str(SCRIPT))
    assert named["new_params"]["w"].shape == (8, 16)
    source = SCRIPT.read_text()
    public = {
        name
        for name in dir(fira_jax)
        if getattr(getattr(fira_jax, name), "__module__", "").startswith("fira_jax.")
        and not name.startswith("_")
    }
    unused = public - set(re.findall(r"fira_jax\.(\w+)", source))
    assert not unused, f"tests/project/typed_user.py does not use {sorted(unused)}"
