"""The methods of the tables, each built from a learning rate, a rank, a gap and a seed."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import fira_jax
from experiments.llama.parametrization import PARAMETRIZATIONS
from experiments.training.config import PretrainConfig
from experiments.training.optimizers import OPTIMIZERS
from fira_jax.basis import PowerIteration, Quantized
from fira_jax.transforms import multi_normalize, standardize, unit_rms, whiten

TRACKED = PowerIteration()
MATRICES = fira_jax.match_paths(include=("attn", "mlp"))
Make = Callable[[optax.Schedule, int, int, Any], optax.GradientTransformation]
"""Learning rate, rank, gap and seed; the last and what the schedule gives may be traced."""


def of_pretrain(name: str) -> Make:
    """What ``experiments.pretrain --optimizer NAME`` trains with."""

    def make(lr: optax.Schedule, rank: int, gap: int, seed: Any) -> optax.GradientTransformation:
        config = PretrainConfig(optimizer=name, rank=rank, update_proj_gap=gap, seed=seed)
        return OPTIMIZERS[name](config, lr)

    return make


def chosen(method: Callable[..., Any], gap: int | None = None, **options: Any) -> Make:
    """A method with some choices of its own, and perhaps a gap of its own."""
    own_gap = gap

    def make(lr: optax.Schedule, rank: int, gap: int, seed: Any) -> optax.GradientTransformation:
        return method(
            lr, rank, own_gap or gap, weight_dimension_numbers=MATRICES, seed=seed, **options
        )

    return make


fira = functools.partial(chosen, fira_jax.fira)


def fira_in_few_bits(times: int, gap: int | None = None, **options: Any) -> Make:
    """Fira at a multiple of the rank, its basis in 4 bits and its moments in 8."""
    own_gap = gap

    def make(lr: optax.Schedule, rank: int, gap: int, seed: Any) -> optax.GradientTransformation:
        low_rank = fira_jax.LowRank(
            times * rank, own_gap or gap, 0.25, weight_dimension_numbers=MATRICES, seed=seed,
            **options,
        )  # fmt: skip
        adam = fira_jax.scale_by_adam_in_subspace(low_rank)
        return optax.chain(
            fira_jax.low_rank_project(low_rank),
            fira_jax.precision.quantize_state(adam, seed=seed),
            fira_jax.fira_residual_scale(),
            fira_jax.norm_growth_limit(low_rank, 1.01),
            fira_jax.project_back(),
            optax.scale_by_learning_rate(lr),
        )

    return make


def fira_unscaled(
    lr: optax.Schedule, rank: int, gap: int, seed: Any
) -> optax.GradientTransformation:
    """Fira without its scale: the residual moves as it is."""
    low_rank = fira_jax.LowRank(rank, gap, 0.25, weight_dimension_numbers=MATRICES, seed=seed)

    return optax.chain(
        fira_jax.low_rank_project(low_rank),
        fira_jax.scale_by_adam_in_subspace(low_rank),
        fira_jax.plain_residual("sgd"),
        fira_jax.norm_growth_limit(low_rank, 1.01),
        fira_jax.project_back(),
        optax.scale_by_learning_rate(lr),
    )


def fira_clipped(
    lr: optax.Schedule, rank: int, gap: int, seed: Any
) -> optax.GradientTransformation:
    """Fira with the whole gradient clipped to a norm of 1 in place of the limiter."""
    return optax.chain(optax.clip_by_global_norm(1.0), fira(gamma=None)(lr, rank, gap, seed))


def tracked_then(normalize: optax.GradientTransformation) -> Make:
    """Tracked Fira, the whole update of each matrix then normalized: nothing is left to limit."""

    def make(lr: optax.Schedule, rank: int, gap: int, seed: Any) -> optax.GradientTransformation:
        del gap
        return optax.chain(
            fira_jax.fira_tracked(
                1.0, rank, gamma=None, weight_dimension_numbers=MATRICES, seed=seed
            ),
            fira_jax.on_matrices(
                optax.chain(normalize, optax.scale(0.05)), optax.identity(), MATRICES
            ),
            optax.scale_by_schedule(lr),
        )

    return make


def tracked_of(normalize: optax.GradientTransformation) -> Make:
    """Tracked Fira of normalized gradients."""

    def make(lr: optax.Schedule, rank: int, gap: int, seed: Any) -> optax.GradientTransformation:
        return optax.chain(
            fira_jax.on_matrices(normalize, optax.identity(), MATRICES),
            chosen(fira_jax.fira_tracked, gap=10)(lr, rank, gap, seed),
        )

    return make


WHITENED = multi_normalize(standardize("input"), whiten(6, 0.8))
SINKHORN = multi_normalize(unit_rms("input"), unit_rms("output"), rounds=3)


def adamw(b2: float = 0.999, weight_decay: float = 0.0) -> Make:
    """Full-rank AdamW."""
    return lambda lr, *_: optax.adamw(lr, b2=b2, weight_decay=weight_decay)


def muon(lr: optax.Schedule, rank: int, gap: int, seed: Any) -> optax.GradientTransformation:
    """Optax's Muon on attention and MLP, Adam at the same learning rate elsewhere."""
    del rank, gap, seed
    return optax.contrib.muon(lr, muon_weight_dimension_numbers=MATRICES, consistent_rms=0.2)


def optax_galore(
    lr: optax.Schedule, rank: int, gap: int, seed: Any
) -> optax.GradientTransformation:
    """Optax's own GaLore, at the scale of the paper; it takes layers one by one."""
    del seed
    return of_layers(optax.contrib.galore(lr, rank, gap, 0.25, weight_dimension_numbers=MATRICES))


def of_layers(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """A transformation that knows no stacks, given each layer's arrays by themselves."""

    def apart(tree: Any) -> Any:
        return tree | {"layers": jax.tree.map(tuple, tree["layers"])}

    def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        layers, state = tx.update(apart(updates), state, apart(params))
        stacked = jax.tree.map(jnp.stack, layers["layers"], is_leaf=lambda x: isinstance(x, tuple))
        return layers | {"layers": stacked}, state

    return optax.GradientTransformation(lambda params: tx.init(apart(params)), update)


METHODS: dict[str, Make] = {
    **{name: of_pretrain(name) for name in OPTIMIZERS},
    **dict.fromkeys(PARAMETRIZATIONS, adamw()),
    "adamw_b2_0.95": adamw(b2=0.95),
    "adamw_wd_0.1": adamw(weight_decay=0.1),
    "muon": muon,
    "optax_galore": optax_galore,
    # What the search for a better default tries.
    "fira_tracked_gap20": fira(gap=20, basis=TRACKED, moments="carry"),
    "fira_tracked_gap5": fira(gap=5, basis=TRACKED, moments="carry"),
    "fira_tracked_gap10_kept": fira(gap=10, basis=TRACKED),
    "fira_randomized_gap10_carried": fira(gap=10, moments="carry"),
    "fira_carried": fira(moments="carry"),
    "fira_gap10": fira(gap=10),
    "fira_gap20": fira(gap=20),
    "fira_gap100": fira(gap=100),
    "fira_4bit_rank_x4": fira_in_few_bits(4, basis=Quantized()),
    "fira_4bit_rank_x4_tracked_gap10": fira_in_few_bits(
        4, gap=10, basis=Quantized(TRACKED, orthonormal=True), moments="carry"
    ),
    "fira_4bit_rank_x4_tracked_gap20": fira_in_few_bits(
        4, gap=20, basis=Quantized(TRACKED, orthonormal=True), moments="carry"
    ),
    "fira_8bit_rank_x4_tracked_gap10": fira_in_few_bits(
        4, gap=10, basis=Quantized(TRACKED, bits=8, orthonormal=True), moments="carry"
    ),
    "sumo_tracked_gap10": chosen(fira_jax.sumo, gap=10, basis=TRACKED),
    "fira_tracked_gap10_paper": fira(gap=10, basis=TRACKED, moments="carry", form="paper"),
    "fira_tracked_scale_0.125": chosen(fira_jax.fira_tracked, gap=10, scale=0.125),
    "fira_tracked_scale_0.0625": chosen(fira_jax.fira_tracked, gap=10, scale=0.0625),
    "fira_orthogonal_rms_0.025": chosen(fira_jax.fira_orthogonal, gap=10, consistent_rms=0.025),
    "fira_orthogonal_rms_0.2": chosen(fira_jax.fira_orthogonal, gap=10, consistent_rms=0.2),
    "fira_orthogonal_3_steps": chosen(fira_jax.fira_orthogonal, gap=10, ns_steps=3),
    "fira_orthogonal_2_steps": chosen(fira_jax.fira_orthogonal, gap=10, ns_steps=2),
    "fira_orthogonal_gap20": chosen(fira_jax.fira_orthogonal, gap=20),
    "fira_tracked_whitened": tracked_then(WHITENED),
    "fira_tracked_sinkhorn": tracked_then(SINKHORN),
    "fira_tracked_of_whitened": tracked_of(WHITENED),
    "fira_tracked_of_sinkhorn": tracked_of(SINKHORN),
    # The paper's ablations.
    "fira_no_limiter": fira(gamma=None),
    "fira_clipped": fira_clipped,
    "fira_unscaled": fira_unscaled,
    "fira_matrix": fira(granularity="matrix"),
    "fira_scale_0.125": fira(scale=0.125),
    "fira_scale_0.5": fira(scale=0.5),
    "fira_gamma_1.001": fira(gamma=1.001),
    "fira_gamma_1.1": fira(gamma=1.1),
    "fira_svd": fira(basis="svd"),
    "fira_long": fira(side="long"),
}

# Any rank gives the same run of these.
WITHOUT_RANK = {
    "adamw", "adamw_b2_0.95", "adamw_wd_0.1", "muon", "racs", "swan", "sinkgd", "scale",
    "apollo_mini", "gwt",
}  # fmt: skip
