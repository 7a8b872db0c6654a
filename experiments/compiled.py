"""Where compiled programs are kept, so that a run which starts again begins in a moment."""

import jax

from experiments.files import cache_directory

_OPTION = "jax_compilation_cache_dir"


def cache_compiled() -> None:
    """Keeps what XLA compiles in the cache folder, unless JAX was told of another place."""
    if jax.config.values[_OPTION] is None:
        jax.config.update(_OPTION, str(cache_directory() / "compiled"))
