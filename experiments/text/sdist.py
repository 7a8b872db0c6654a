"""``python -m experiments.text.sdist NAME SHA256``: a source archive by its hash, never run.

pip has no way to fetch a source archive without running its build to learn its name. This asks the
index that pip is set to use for the one file with this hash and puts it, once it is known to have
it, into the working folder.
"""

import hashlib
import re
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path


def main() -> None:
    """Fetches one file; what goes wrong ends in one line."""
    name, sha256 = sys.argv[1:]
    try:
        fetch_by_hash(index_of_pip(), name, sha256, Path())
    except (OSError, ValueError) as error:
        sys.exit(f"{name}: {error}")


def fetch_by_hash(index: str, name: str, sha256: str, folder: Path) -> Path:
    """The file of a project whose bytes have a hash.

    Raises:
        ValueError: If the index lists no such file, or serves another.
        OSError: If the index can't be reached.
    """
    page = f"{index.rstrip('/')}/{re.sub('[-_.]+', '-', name).lower()}/"
    with urllib.request.urlopen(page, timeout=30) as answer:
        address, text = answer.geturl(), answer.read().decode()
    found = re.search(rf'href="([^"#]+)#sha256={sha256}"', text)
    if not found:
        raise ValueError(f"{page} lists no file with SHA-256 {sha256}")
    url = urllib.parse.urljoin(address, found[1])
    with urllib.request.urlopen(url, timeout=60) as answer:
        data = answer.read()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(f"{url} has another SHA-256 than {sha256}")
    path = folder / urllib.parse.unquote(url.rsplit("/", 1)[1])
    path.write_bytes(data)
    return path


def index_of_pip() -> str:
    """The package index that pip uses here, by its settings and environment."""
    command = [sys.executable, "-m", "pip", "config", "list", "--disable-pip-version-check"]
    settings = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = re.findall(r"^(?:global|download|:env:)\.index-url='(.*)'$", settings, re.MULTILINE)
    return found[-1] if found else "https://pypi.org/simple"


if __name__ == "__main__":
    main()
