"""How the frameworks lay out their weights, read off names, shapes and neighbors."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import optax

from fira_jax.dimension_numbers import Keys, WhereItSaves, arrays_of
from fira_jax.trees import Params, path_name

EMBEDDINGS_AND_HEADS = (
    r"embed|(^|[/_])(pos|tok|type)?emb(_|/|$)|(^|/)w[tp]e(/|$)|tokens?$",
    r"(^|[/_])head(_?\d+)?(/|$)|logits|classifier",
)
"""Expressions that find what turns tokens into vectors and vectors into predictions."""

_VECTORS = re.compile(r"bias|^(b|scale|gamma|beta|offset|g)$")
_NORMS = re.compile(r"norm(?!al(_|\d|$))|(^|_)(ln|rms|gn|bn)(_|\d|$)")
_CONVOLUTIONS = re.compile(r"conv")
_ATTENTION = re.compile(r"att(entio)?n")
_NO_ATTENTION = re.compile(r"expert|moe|mlp|ffn|feed_?forward")
_INTO_HEADS = re.compile(r"(^|_)(q|k|v|qkv|kv|query|key|value)(_|\d|$)|^w(q|k|v|qkv|kv)$")
_OUT_OF_HEADS = re.compile(r"(^|_)(o|out|output)(_|\d|$)|^wo$|attn_vec")


def match_modules(
    *include: str, exclude: str | Sequence[str] = EMBEDDINGS_AND_HEADS
) -> Callable[[Params], Params]:
    r"""Chooses the weight matrices of a model, and their axes, as its framework lays them out.

    Knows Flax (Linen and NNX, also scanned or ``nnx.vmap``-ed), Haiku, Equinox, Keras and the
    einsum layers of Gemma's kind, and tells them apart by names and shapes:

    ======================================= ====================================== =================
    parameter                               shape                                  read as
    ======================================= ====================================== =================
    dense (``kernel``, ``w``)               ``[*stack, in, out]``                  in × out
    dense of Equinox (``weight``)           ``[*stack, out, in]``                  in × out
    query, key, value with heads            ``[*stack, in, heads, size]``          in × (heads·size)
    the same of Gemma's einsums             ``[*stack, heads, in, size]``          in × (heads·size)
    output of attention with heads          ``[*stack, heads, size, out]``         (heads·size) × out
    convolution (``kernel``, ``w``)         ``[*stack, *window, in, out]``         (window·in) × out
    convolution of Equinox (``weight``)     ``[*stack, out, in, *window]``         (in·window) × out
    experts                                 ``[*stack, experts, in, out]``         in × out, one each
    biases, scales, norms, also stacked     any                                    left alone
    ======================================= ====================================== =================

    Which axes are a stack is read off the biases and norms beside a weight (the first ones, or
    the second where a model is scanned along that). A matrix whose state
    would not be smaller than Adam's (a depthwise filter, a router, the pair of a low-rank adapter, at a rank as large
    as its shorter side) is left alone too. Look at :func:`fira_jax.describe`; what it gets wrong
    can be said by :func:`fira_jax.match_paths` with a mapping.

    Args:
      include: regular expressions, such as ``"attn"`` and ``"mlp"``: only parameters with one of
        them in their path; all if there are none. Case does not matter.
      exclude: regular expressions; a parameter with one of them in its path is left alone. By
        default embeddings and heads are, as in the papers; ``()`` takes these too.

    Returns:
      A callable for ``weight_dimension_numbers``. When called it raises ``ValueError`` if it
      matches no parameter.

    Example:
      >>> import fira_jax, jax.numpy as jnp
      >>> params = {
      ...     "embedding": jnp.zeros((512, 64)),
      ...     "layers": {  # 6 of them, scanned
      ...         "query": {"kernel": jnp.zeros((6, 64, 4, 16)), "bias": jnp.zeros((6, 4, 16))},
      ...         "up": {"kernel": jnp.zeros((6, 64, 256)), "bias": jnp.zeros((6, 256))},
      ...     },
      ... }
      >>> choose = fira_jax.match_modules()
      >>> print(fira_jax.describe(fira_jax.galore(1e-2, rank=8, weight_dimension_numbers=choose), params))
      parameter            shape            matrices       compressed  rank  state      Adam's
      -------------------  ---------------  -------------  ----------  ----  ---------  ---------
      embedding            512 x 64         -              -           -     256.0 KiB  256.0 KiB
      layers/query/bias    6 x 4 x 16       -              -           -     3.0 KiB    3.0 KiB
      layers/query/kernel  6 x 64 x 4 x 16  6 of 64 x 64   input 64    8     36.0 KiB   192.0 KiB
      layers/up/bias       6 x 256          -              -           -     12.0 KiB   12.0 KiB
      layers/up/kernel     6 x 64 x 256     6 of 64 x 256  input 64    8     108.0 KiB  768.0 KiB
      2 of 5 parameters projected; optimizer state 415.0 KiB beside Adam's 1.2 MiB (33.7%)
    """  # noqa: E501
    wanted = [re.compile(p, re.IGNORECASE) for p in include or (".*",)]
    exclude = [exclude] if isinstance(exclude, str) else exclude
    unwanted = [re.compile(p, re.IGNORECASE) for p in exclude]

    def choose(params: Params) -> Params:
        flat, treedef = jax.tree_util.tree_flatten_with_path(
            arrays_of(params), is_leaf=lambda x: isinstance(x, optax.MaskedNode)
        )
        leaves = tuple(
            _Leaf(
                tuple(path_name(path).split("/")),  # Haiku's and Keras's keys are paths already
                tuple(getattr(x, "shape", ())),
                isinstance(x, optax.MaskedNode),
            )
            for path, x in flat
        )

        def taken(leaf: _Leaf) -> bool:
            name = "/".join(leaf.keys)
            return any(p.search(name) for p in wanted) and not any(p.search(name) for p in unwanted)

        read = _read_all(leaves)
        specs = [x if taken(leaf) else None for leaf, x in zip(leaves, read, strict=True)]
        seen = ["/".join(leaf.keys) for leaf in leaves if not leaf.masked]
        if seen and not any(specs) and not any(leaf.masked and taken(leaf) for leaf in leaves):
            raise ValueError(
                f"match_modules({', '.join(map(repr, include))}) finds no matrix; the paths are: "
                f"{', '.join(seen)}"
            )
        return jax.tree.unflatten(treedef, specs)

    return choose


class _Leaf(NamedTuple):
    keys: Keys
    shape: tuple[int, ...]  # () where there is none
    masked: bool

    def named(self, pattern: re.Pattern[str]) -> bool:
        """Whether one of the names on the way to it, or its own, is of that kind."""
        return any(pattern.search(key.lower()) for key in self.keys)

    def is_called(self, pattern: re.Pattern[str]) -> bool:
        """Whether its own name, or that of the module it is in, is of that kind."""
        return any(pattern.search(key.lower()) for key in self.keys[-2:])

    @property
    def own(self) -> str:
        return self.keys[-1].lower() if self.keys else ""

    @property
    def is_vector(self) -> bool:
        return bool(_VECTORS.search(self.own)) or self.named(_NORMS)


@functools.lru_cache  # every piece of a chain asks, at every trace
def _read_all(leaves: tuple[_Leaf, ...]) -> tuple[WhereItSaves | None, ...]:
    return tuple(_read(leaf, leaves) for leaf in leaves)


def _read(leaf: _Leaf, leaves: Sequence[_Leaf]) -> WhereItSaves | None:
    """The axes of a weight; None if it is no matrix, or a stack of vectors."""
    siblings = [x for x in leaves if x.keys[:-1] == leaf.keys[:-1] and x != leaf and x.shape]
    bias = next((x.shape for x in siblings if x.own in ("bias", "b")), None)
    if leaf.is_vector or not leaf.shape or bias == leaf.shape:
        return None
    outputs_first = leaf.own == "weight"  # Equinox
    into, out = (
        not outputs_first and _is_attention(leaf, leaves, kind)
        for kind in (_INTO_HEADS, _OUT_OF_HEADS)
    )
    stack = _stack_of(leaf, bias, leaves, outputs_first)
    if stack is None and (into or out):
        stack = _stack_of_attention(leaf, leaves)
    # The other axes, counted from the end.
    axes = [i - len(leaf.shape) for i in range(len(leaf.shape)) if i not in (stack or ())]
    sizes = [leaf.shape[i] for i in axes]
    if len(axes) < 2:
        return None
    if len(axes) > 2 and (leaf.named(_CONVOLUTIONS) or (len(axes) == 4 and bias == (sizes[-1],))):
        reduction, output = (axes[1:], axes[:1]) if outputs_first else (axes[:-1], axes[-1:])
        if sizes[1 if outputs_first else -2] == 1:
            return None  # depthwise: one small filter for each channel
    elif len(axes) > 2 and into:
        # The heads are before or behind the input, which is the largest of all axes but the last.
        at = max(range(len(axes) - 1), key=sizes.__getitem__)
        before = axes[at - 1 : at] if at == len(axes) - 2 else []
        reduction, output = axes[at : at + 1], before + axes[at + 1 :]
    elif len(axes) == 3 and out:
        reduction, output = axes[:2], axes[2:]
    else:
        reduction, output = axes[-2:-1], axes[-1:]
        if outputs_first:
            reduction, output = output, reduction
    return WhereItSaves(*(x[0] if len(x) == 1 else tuple(x) for x in (reduction, output)))


def _is_attention(leaf: _Leaf, leaves: Sequence[_Leaf], kind: re.Pattern[str]) -> bool:
    """Whether it is a projection of that kind in an attention."""
    if leaf.named(_NO_ATTENTION) or not leaf.is_called(kind):
        return False
    return leaf.named(_ATTENTION) or any(
        x.keys[:-2] == leaf.keys[:-2] and x.is_called(_INTO_HEADS) for x in leaves
    )


def _stack_of(
    leaf: _Leaf, bias: tuple[int, ...] | None, leaves: Sequence[_Leaf], outputs_first: bool
) -> tuple[int, ...] | None:
    """Which axes of a weight are layers or experts; None if nothing beside it tells."""
    by_norms = _stack_by_norms(leaf, leaves)
    if bias is None:
        return by_norms
    if outputs_first:
        while len(bias) > 1 and bias[-1] == 1:  # of a convolution: [out, 1, 1]
            bias = bias[:-1]
        possible = [len(bias) - 1]
    else:  # a bias has the axes of the stack and of the outputs
        n = len(bias)
        possible = [k for k in range(n) if bias == leaf.shape[:k] + leaf.shape[k - n :]]
    if not possible or (by_norms is not None and len(by_norms) in possible):
        return by_norms
    return tuple(range(possible[0]))


def _stack_by_norms(leaf: _Leaf, leaves: Sequence[_Leaf]) -> tuple[int, ...] | None:
    """The same, by the vectors of the nearest place above that has any."""
    for end in range(len(leaf.keys) - 1, -1, -1):
        around = [x for x in leaves if x.keys[:end] == leaf.keys[:end] and x.shape]
        vectors = [x.shape for x in around if x.own in ("scale", "gamma") or x.named(_NORMS)]
        if not vectors:
            continue
        if all(len(x) == 2 for x in vectors):
            # One layer's vector has one axis, so the other is the stack: the one all share.
            for axis in (0, 1):
                if len({x.shape[axis] if len(x.shape) > 1 else None for x in around}) == 1:
                    return (axis,)
        ranks = [len(x) - 1 for x in vectors if x[:-1] == leaf.shape[: len(x) - 1]]
        if ranks:
            return tuple(range(min(ranks)))
    return None


def _stack_of_attention(leaf: _Leaf, leaves: Sequence[_Leaf]) -> tuple[int, ...]:
    """The first axis, if the projections into heads and out of them have it in common."""
    around = [x for x in leaves if x.keys[:-2] == leaf.keys[:-2] and x.shape and not x.is_vector]
    into, out = ([x for x in around if x.is_called(p)] for p in (_INTO_HEADS, _OUT_OF_HEADS))
    first = {x.shape[0] for x in (*into, *out) if x.shape}
    return (0,) if into and out and len(first) == 1 else ()
