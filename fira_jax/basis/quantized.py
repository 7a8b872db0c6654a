"""Any basis, stored in a few bits."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fira_jax.basis.protocol import Basis
from fira_jax.basis.randomized import Randomized
from fira_jax.codes import Linear, blocks, decode_linear, encode_linear, unblocks
from fira_jax.newton_schulz import inverse_root


@dataclasses.dataclass(frozen=True)
class Quantized(Basis):
    r"""Another basis, each of whose vectors' entries is stored in 4 bits (or 8).

    Entries :math:`x` of a group, neighbours in the basis read row by row, share a scale and the
    code of zero,

    .. math::

        s = \frac{\max(x, 0) - \min(x, 0)}{2^k - 1}, \qquad
        z = \mathrm{round}(-\min(x, 0) / s), \qquad q = \mathrm{round}(x / s) + z

    and both the way into the subspace and the way back use what the codes stand for,
    :math:`s (q - z)`, whose columns are orthonormal only roughly. The basis :math:`a \times r`
    takes :math:`\lceil a r / g \rceil (g k / 8 + 5)` bytes.

    With ``orthonormal`` the vectors are the orthonormal ones nearest to that,
    :math:`Q (Q^\top Q)^{-1/2}`, found at every step by products of small matrices alone. The
    space is the same; the moments can then be carried from one basis to the next, which otherwise
    would grow by the rounding at each refresh, and nothing more is stored.

    Args:
      inner: the basis that is stored so; it must store its vectors as an array.
      bits: :math:`k`, 4 or 8.
      group: :math:`g`, numbers that share a scale, even; the last group is filled up with zeros.
      orthonormal: whether the vectors are made orthonormal again.

    Raises:
      ValueError: an argument is out of range, or ``inner`` does not store its vectors.

    References:
      Zhang et al., `Q-GaLore <https://arxiv.org/abs/2407.08296>`_, 2024. Deviations from the
      released code: two codes of 4 bits share a byte (one has it for itself there); zero is in the
      range always (a group of one sign becomes a single value there); groups run along the rows of
      the basis, whichever side of the weight it spans.

    Example:
      >>> import fira_jax
      >>> basis = fira_jax.basis.Quantized(fira_jax.basis.Svd(), bits=4)
      >>> stored = basis.init(64, 16, "float32")
      >>> stored.codes.shape, stored.spacing.shape
      ((4, 128), (4, 1))
    """

    inner: Basis = Randomized()  # noqa: RUF009  # frozen
    bits: int = 4
    group: int = 256
    orthonormal: bool = False

    def __post_init__(self) -> None:
        """Checks the arguments."""
        if self.bits not in (4, 8):
            raise ValueError(f"bits must be 4 or 8, got {self.bits}")
        if self.group < 2 or self.group % 2:
            raise ValueError(f"group must be even and at least 2, got {self.group}")
        like = jax.eval_shape(lambda: self.inner.init(4, 2, jnp.float32))
        if getattr(like, "shape", None) != (4, 2):
            raise ValueError(
                f"only a basis that stores its vectors can be quantized, got {self.inner!r}"
            )
        if self.inner.observes:
            raise ValueError(
                f"a basis that learns at every step cannot be quantized, got {self.inner!r}"
            )

    @property
    def any_rank(self) -> bool:  # noqa: D102
        return self.inner.any_rank

    @property
    def scale_free(self) -> bool:  # noqa: D102
        return self.inner.scale_free

    @property
    def whole(self) -> bool:  # noqa: D102
        return self.inner.whole

    @property
    def moves(self) -> bool:  # noqa: D102
        return self.inner.moves

    def init(self, a: int, rank: int, dtype: jax.typing.DTypeLike) -> Linear:  # noqa: D102
        return self._encode(self.inner.init(a, rank, dtype))

    def find(  # noqa: D102
        self, grad: jax.Array, stored: Linear, rank: int, key: jax.Array
    ) -> Linear:
        old = self._decode(stored, grad.shape[0], rank)
        return self._encode(self.inner.find(grad, old.astype(grad.dtype), rank, key))

    def vectors(  # noqa: D102
        self,
        stored: Linear,
        a: int,
        rank: int,
        dtype: jax.typing.DTypeLike,
        key: jax.Array,
    ) -> Any:
        vectors = self._decode(stored, a, rank)
        if self.orthonormal:
            vectors = nearest_orthonormal(vectors)
        vectors = vectors.astype(dtype)
        return self.inner.vectors(vectors, a, rank, dtype, key)

    def _encode(self, vectors: jax.Array) -> Linear:
        return encode_linear(blocks(vectors.reshape(-1), self.group), self.bits)

    def _decode(self, stored: Linear, a: int, rank: int) -> jax.Array:
        entries = unblocks(decode_linear(stored, self.bits), a * rank)
        return entries.reshape(*entries.shape[:-1], a, rank)


def nearest_orthonormal(vectors: jax.Array, iterations: int = 6) -> jax.Array:
    r"""The orthonormal columns nearest to ``[..., a, r]`` that are orthonormal but for rounding.

    By the inverse root of the Gram matrix, all of it on :math:`r \times r`. Six steps bring
    singular values between 0.4 and 1.7 to 1; zero columns stay zero.
    """
    with jax.default_matmul_precision("float32"):
        return vectors @ inverse_root(vectors.mT @ vectors, iterations)
