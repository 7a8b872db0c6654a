"""Files from package registries: fetched by the package client, checked against a pinned hash."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

from experiments.cache import locked, replacing, sha256_of_file


class DownloadError(RuntimeError):
    """A package could not be fetched, or is not the file it should be."""


@dataclasses.dataclass(frozen=True)
class Package:
    """One file of the Python package index: a wheel, or a source archive.

    Attributes:
        name: Project name.
        version: Exact version.
        sha256: Hexadecimal SHA-256 of the file.
        source: Whether the file is a source archive. Wheels are preferred because the client
            runs none of their code; for a source archive it asks ``setup.py`` for metadata.
    """

    name: str
    version: str
    sha256: str
    source: bool = False

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


def fetch(package: Package, cache: Path) -> Path:
    """Path of the package's file in the cache, downloaded there on first use.

    Nothing is installed: the file is only read.

    Raises:
        DownloadError: If the client fails, or the file's hash is not the pinned one.
    """
    folder = cache / "packages" / f"{package.name}-{package.version}"
    with locked(cache / "packages", package.name):
        if not folder.exists():
            with replacing(folder) as temporary:
                _download(package, temporary)
                _check(package, _only_file(temporary))
        return _check(package, _only_file(folder))


def _download(package: Package, folder: Path) -> None:
    folder.mkdir()
    kind = "--no-binary" if package.source else "--only-binary"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", kind, ":all:", "--dest", str(folder), str(package)]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    if outcome.returncode:
        reason = "\n".join(outcome.stderr.strip().splitlines()[-5:])
        raise DownloadError(
            f"could not download {package}. Check the network and pip's index settings by "
            f"running\n  {sys.executable} -m pip download --no-deps {package}\n"
            f"then try again; what is already there is kept. pip said:\n{reason}"
        )


def _only_file(folder: Path) -> Path:
    files = sorted(folder.iterdir())
    if len(files) != 1:
        raise DownloadError(f"expected one file in {folder}, found {[f.name for f in files]}")
    return files[0]


def _check(package: Package, file: Path) -> Path:
    found = sha256_of_file(file)
    if found != package.sha256:
        shutil.rmtree(file.parent, ignore_errors=True)  # the next attempt downloads afresh
        raise DownloadError(
            f"{file.name} of {package} has SHA-256 {found}, expected {package.sha256}: the "
            "download was damaged, or the index served another file. It was removed; try again."
        )
    return file
