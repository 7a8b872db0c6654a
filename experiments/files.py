"""Where downloaded and derived files live, and how they get there without being half-written."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import filelock
from etils import epath
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


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path has a scheme: an object store's (``gs://bucket/run``), not a disk's."""
    return "://" in os.fspath(path)


def write_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Replaces ``path`` as a whole: neither a kill nor a power cut leaves half of it."""
    if is_remote(path):
        epath.Path(path).write_text(text)  # an object appears when it is complete
        return
    target = Path(path)
    temporary = target.with_name(target.name + ".tmp")
    try:
        with naming(target), temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError:
        temporary.unlink(missing_ok=True)  # on a full disk every byte counts
        raise


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Gives an error of the system its file: writing to an open one names none."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def one_line(error: BaseException) -> str:
    """What went wrong, for people: a system's error with the file's name, others by their text."""
    if isinstance(error, OSError) and error.strerror:
        named = [os.fspath(name) for name in (error.filename, error.filename2) if name is not None]
        return ": ".join([*map(str, named), error.strerror])
    return str(error) or type(error).__name__
