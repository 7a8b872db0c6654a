"""How a subspace is found: one file for each kind of basis, all behind :class:`Basis`."""

from fira_jax.basis.adaptive import Adaptive as Adaptive
from fira_jax.basis.columns import Columns as Columns
from fira_jax.basis.dct import Dct as Dct
from fira_jax.basis.haar import Haar as Haar
from fira_jax.basis.oja import Oja as Oja
from fira_jax.basis.orthonormal import Orthonormal as Orthonormal
from fira_jax.basis.protocol import Basis as Basis
from fira_jax.basis.quantized import Quantized as Quantized
from fira_jax.basis.randk import RandK as RandK
from fira_jax.basis.random import Random as Random
from fira_jax.basis.randomized import Randomized as Randomized
from fira_jax.basis.svd import Svd as Svd
from fira_jax.basis.switching import Switching as Switching
from fira_jax.basis.tracked import Grassmann as Grassmann
from fira_jax.basis.tracked import PowerIteration as PowerIteration
from fira_jax.checks import require_choice
from fira_jax.completion import completed
from fira_jax.matrix_view import Directions as Directions

_NAMED: dict[str, type[Basis]] = {
    "svd": Svd,
    "randomized": Randomized,
    "random": Random,
    "dct": Dct,
    "orthonormal": Orthonormal,
    "columns": Columns,
    "randk": RandK,
    "haar": Haar,
    "switching": Switching,
    "oja": Oja,
}


def resolve(basis: str | Basis) -> Basis:
    """The basis with this name, or the object itself.

    Args:
      basis: ``"svd"``, ``"randomized"``, ``"random"``, ``"dct"``, ``"orthonormal"``,
        ``"columns"``, ``"randk"``, ``"haar"``, ``"switching"``, ``"oja"`` or a :class:`Basis`.

    Raises:
      ValueError: unknown name.
      TypeError: an object that lacks the protocol's methods.

    Example:
      >>> import fira_jax
      >>> fira_jax.basis.resolve("svd")
      Svd()
    """
    if isinstance(basis, str):
        require_choice("basis", basis, _NAMED)
        return _NAMED[basis]()
    whole = completed(basis, Basis)
    if whole is None:
        raise TypeError(f"basis must be a name or a fira_jax.basis.Basis object, got {basis!r}")
    return whole
