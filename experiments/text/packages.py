"""Files from package registries: fetched by the package client, checked against a pinned hash."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

from experiments.files import locked, replacing, sha256_of_file


class DownloadError(RuntimeError):
    """A package could not be fetched, or is not the file it should be."""


@dataclasses.dataclass(frozen=True)
class Package:
    """One file of a package registry. It is only read, never installed.

    Attributes:
        name: Name in the registry.
        version: Exact version; None takes what the registry offers.
        sha256: Hexadecimal SHA-256 of the file; None accepts any.
        kind: ``"wheel"`` or ``"sdist"`` of the Python package index (a wheel is preferred: for
            a source archive pip runs its ``setup.py`` to learn its name), ``"npm"`` or ``"deb"``.
    """

    name: str
    version: str | None
    sha256: str | None
    kind: Literal["wheel", "sdist", "npm", "deb"] = "wheel"

    def __str__(self) -> str:
        separator = {"npm": "@", "deb": "="}.get(self.kind, "==")
        return f"{self.name}{separator}{self.version}" if self.version else self.name

    def download_command(self) -> list[str]:
        """The command that puts the package's file into the working folder."""
        if self.kind == "npm":
            return ["npm", "pack", "--silent", str(self)]
        if self.kind == "deb":
            return ["apt-get", "download", "--quiet", str(self)]
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]
        only = "--only-binary" if self.kind == "wheel" else "--no-binary"
        return [*pip, "--no-input", "--quiet", only, self.name, str(self)]


def fetch(package: Package, cache: Path) -> Path:
    """Path of the package's file in the cache, downloaded there on first use.

    Raises:
        DownloadError: If the package's client fails, or the file's hash is not the pinned one.
    """
    folder = cache / "packages" / f"{package.name}-{package.version or 'unpinned'}"
    with locked(cache / "packages", package.name):
        if not folder.exists():
            with replacing(folder) as temporary:
                temporary.mkdir()
                _download(package, temporary)
                _check(package, temporary)
        return _check(package, folder)


def _download(package: Package, folder: Path) -> None:
    command = package.download_command()
    try:
        outcome = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise DownloadError(f"{package} needs {command[0]!r}, which is not installed") from error
    if outcome.returncode:
        reason = "\n".join(outcome.stderr.strip().splitlines()[-5:])
        raise DownloadError(
            f"could not download {package}. Check the network and the client's settings with\n"
            f"  {' '.join(command)}\nthen try again: what was fetched before is kept. "
            f"The client said:\n{reason}"
        )


def _check(package: Package, folder: Path) -> Path:
    files = sorted(folder.iterdir())
    if len(files) != 1:
        raise DownloadError(f"{package} should be one file, got {[file.name for file in files]}")
    found = sha256_of_file(files[0])
    if package.sha256 not in (None, found):
        shutil.rmtree(folder)  # so that the next attempt downloads afresh
        raise DownloadError(
            f"{files[0].name} of {package} has SHA-256 {found}, expected {package.sha256}: the "
            "download was damaged, or the registry served another file. It was removed; try again."
        )
    return files[0]
