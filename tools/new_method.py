"""Begins a new method: its file, its test, its places in registry, documentation and gallery.

    python -m tools.new_method my_method --title MyMethod --paper 2501.00001 [--dry-run]

What is written works at once: it is GaLore with momentum in the subspace, and its test compares it
with NumPy. Change both into the method, the test first. Nothing that exists is overwritten.
"""

from __future__ import annotations

import argparse
import difflib
import keyword
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

METHOD = '''\
"""{title}: momentum in the gradient's leading subspace."""

from __future__ import annotations

from typing import Any

import jax
import optax

from fira_jax.arguments import BasisLike, RefreshLike, Side
from fira_jax.low_rank import LowRank
from fira_jax.methods.shared import descent, shared_arguments
from fira_jax.transforms.in_subspace import in_subspace
from fira_jax.transforms.project import low_rank_project, project_back


@shared_arguments
def {name}(
    learning_rate: optax.ScalarOrSchedule,
    rank: int = 128,
    update_proj_gap: int = 200,
    scale: jax.typing.ArrayLike = 1.0,
    base_optimizer: optax.GradientTransformation | None = None,
    weight_decay: jax.typing.ArrayLike = 0.0,
    mask: Any = None,
    weight_dimension_numbers: Any = None,
    *,
    b1: jax.typing.ArrayLike = 0.9,
    basis: BasisLike = "randomized",
    side: Side = "short",
    refresh: RefreshLike = "fixed",
    seed: jax.typing.ArrayLike = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""{title}, in one sentence of your own.

    .. math::

        U = \\alpha P M, \\qquad M \\leftarrow \\beta M + P^\\top G

    State: :math:`ar + br` elements for a matrix with sides :math:`a \\le b`.

    Args:
      base_optimizer: replaces the momentum; any Optax transformation without a learning rate.
      b1: :math:`\\beta`, decay of the momentum.

    Raises:
      TypeError: ``rank`` or ``update_proj_gap`` is not a static int.
      ValueError: an argument is out of range or, at ``init``, does not fit a parameter.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> tx = fira_jax.{name}(learning_rate=1e-2, rank=4)
      >>> state = tx.init({{"w": jnp.ones((8, 16))}})

    References:
      `{title} <https://arxiv.org/abs/{paper}>`_. Deviations: say which.
    """
    low_rank = LowRank(
        rank,
        update_proj_gap,
        scale,
        basis=basis,
        side=side,
        weight_dimension_numbers=weight_dimension_numbers,
        seed=seed,
        refresh=refresh,
    )
    return optax.chain(
        low_rank_project(low_rank),
        in_subspace(low_rank, base_optimizer or optax.trace(b1)),
        project_back(),
        *descent(learning_rate, weight_decay, mask),
    )
'''

TEST = '''\
"""{title} against its steps in NumPy float64, written from the paper."""

import jax
import jax.numpy as jnp
import numpy as np
from support import history, normal

import fira_jax

STEPS, RATE, RANK, SCALE = 5, 0.1, 3, 0.5


def reference(grads, b1=0.9):
    """Updates of a wide matrix whose subspace is found once, from the first gradient."""
    left = np.linalg.svd(grads[0])[0][:, :RANK]
    momentum = 0.0
    for grad in grads:
        momentum = b1 * momentum + left.T @ grad
        yield -RATE * SCALE * left @ momentum


def test_steps_are_those_of_the_paper():
    with jax.enable_x64(True):
        grads = normal(0, STEPS, 8, 12, dtype=np.float64)
        tx = fira_jax.{name}(RATE, RANK, scale=SCALE, basis="svd")
        updates, _ = history(tx, {{"w": grads}}, {{"w": np.zeros((8, 12))}})
    for ours, theirs in zip(updates["w"], reference(grads), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9)


def test_state_is_as_small_as_promised():
    params = {{"w": jnp.zeros((8, 12))}}
    (row,) = fira_jax.describe(fira_jax.{name}(RATE, RANK), params).rows
    assert row.state_bytes == 4 * (8 * RANK + 12 * RANK)
'''

AFTERWARDS = """
Now, in this order:
  1. tests/methods/test_{name}.py: the paper's steps in NumPy, the state it keeps
  2. fira_jax/methods/{name}.py: the pieces, the docstring
  3. docs/figures/gallery_methods.py: state and one line, then
     python docs/figures/gallery.py {name}
     docs/guides/choosing.md: its name, beside the trouble that it helps with
  4. python -m benchmarks.eight_devices {name}
     python -m benchmarks.compilers --compilers cpu --word {name}
     (rows of accelerators are added where their compilers are installed)
  5. CHANGELOG.md, and `make lint types test`
"""


def in_order(lines: list[str], new: str) -> list[str]:
    """``lines`` with ``new`` before the first one that comes after it in the alphabet."""
    at = next((i for i, line in enumerate(lines) if line > new), len(lines))
    return [*lines[:at], new, *lines[at:]]


def with_line(text: str, pattern: str, new: str, *, ordered: bool = False) -> str:
    """``text`` with a line added to those that match ``pattern``: in order, or at their end."""
    lines = text.splitlines(keepends=True)
    places = [i for i, line in enumerate(lines) if re.match(pattern, line)]
    if not places:
        raise SystemExit(f"found no line like {pattern!r}: has the file another form now?")
    first, last = places[0], places[-1] + 1
    if ordered:
        lines[first:last] = in_order(lines[first:last], new)
    else:
        lines.insert(last, new)
    return "".join(lines)


def changes(root: Path, name: str, title: str, paper: str) -> dict[Path, tuple[str, str]]:
    """Every file concerned, as it is and as it will be."""
    words = {"name": name, "title": title, "paper": paper}
    added = {
        root / "fira_jax" / "methods" / f"{name}.py": METHOD.format(**words),
        root / "tests" / "methods" / f"test_{name}.py": TEST.format(**words),
    }
    for path in added:
        if path.exists():
            raise SystemExit(f"{path.relative_to(root)} is there already")
    found = {path: ("", text) for path, text in added.items()}

    def edit(path: Path, pattern: str, new: str, *, ordered: bool = False) -> None:
        text = path.read_text()
        found[path] = (text, with_line(text, pattern, new, ordered=ordered))

    line = f"from fira_jax.methods.{name} import {name} as {name}\n"
    edit(root / "fira_jax/__init__.py", r"from fira_jax\.methods\.", line, ordered=True)
    line = f"\n.. autofunction:: fira_jax.{name}\n"
    edit(root / "docs/api/methods.md", r"\.\. autofunction:: fira_jax\.\w+$", line)
    line = f'    "{name}": low_rank(fira_jax.{name}, keep=["scale"]),\n'
    edit(root / "experiments/training/optimizers.py", r'    "\w+": low_rank\(', line)
    entry = (
        f'    Method("{name}", "{title}", "{paper}", "ar + br",\n'
        '           "momentum in the leading subspace, nothing outside"),\n'
    )
    edit(root / "docs/figures/gallery_methods.py", r"           .*\),$", entry)
    return found


def main(arguments: list[str] | None = None, root: Path = ROOT) -> None:
    """Writes the files, or shows what would be written."""
    parser = argparse.ArgumentParser(prog="tools.new_method", description=__doc__.split("\n")[0])
    parser.add_argument("name", help="as in fira_jax.NAME")
    parser.add_argument("--title", help="as people write it")
    parser.add_argument("--paper", default="0000.00000", help="its number on arXiv")
    parser.add_argument("--dry-run", action="store_true", help="show the changes, write nothing")
    options = parser.parse_args(arguments)
    if not re.fullmatch(r"[a-z][a-z0-9_]*", options.name) or keyword.iskeyword(options.name):
        parser.error(f"{options.name!r} is no name for a function")
    for path, (old, new) in changes(
        root, options.name, options.title or options.name, options.paper
    ).items():
        if options.dry_run:
            where = str(path.relative_to(root))
            before, after = (text.splitlines(keepends=True) for text in (old, new))
            sys.stdout.writelines(difflib.unified_diff(before, after, where, where, n=1))
        else:
            path.write_text(new)
            print(path.relative_to(root))
    if not options.dry_run:
        print(AFTERWARDS.format(name=options.name))


if __name__ == "__main__":
    main()
