"""Where downloaded and derived files live, and how they get there without being half-written."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import filelock
from rich.console import Console

CACHE_VARIABLE = "FIRA_JAX_CACHE"

# Progress and notes go to stderr: stdout stays free for a command's own result.
console = Console(stderr=True)


def cache_directory(path: str | os.PathLike[str] | None = None) -> Path:
    """The cache folder: ``path``, else ``$FIRA_JAX_CACHE``, else ``~/.cache/fira_jax``."""
    if path is None:
        path = os.environ.get(CACHE_VARIABLE)
    if path is None:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        path = Path(base) / "fira_jax"
    directory = Path(path).expanduser()
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def sha256_of_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yields a temporary path that becomes ``target`` if, and only if, the block succeeds.

    The block may make the temporary path a file or a folder. It lies beside the target, so
    that the final rename is atomic.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        temporary = scratch / target.name
        yield temporary
        if temporary.is_dir() and target.exists():  # os.replace refuses to overwrite a folder
            shutil.rmtree(target)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def locked(directory: Path, name: str) -> Iterator[None]:
    """Holds the lock ``name`` of a cache folder; the system frees it if the process dies."""
    directory.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(directory / f".{name}.lock")
    try:
        lock.acquire(timeout=1)
    except filelock.Timeout:
        console.print(f"Waiting for another process that is preparing {name} in {directory} …")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def write_atomically(path: Path, text: str) -> None:
    """Replaces ``path`` as a whole: a reader or a killed process never leaves half of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
