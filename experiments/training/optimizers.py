"""The optimizers that ``experiments.pretrain --optimizer NAME`` knows.

A new method joins by one line in ``OPTIMIZERS``. Low-rank methods project the attention and MLP
matrices and leave embeddings, norms and the head to Adam at the same learning rate: the rule of
the GaLore and Fira papers.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import optax

import fira_jax
from experiments.training.config import PretrainConfig
from fira_jax.checks import did_you_mean

MATRICES: dict[str, Any] = {"include": ("attn", "mlp"), "exclude": "bias"}

Builder = Callable[[PretrainConfig, optax.Schedule], optax.GradientTransformation]


def low_rank(
    method: Callable[..., optax.GradientTransformation], keep: Sequence[str] = (), **options: Any
) -> Builder:
    """Builds any ``fira_jax`` method from the flags; unset flags keep the method's own default.

    So do those in ``keep``, whose flag means something else for this method: ``--scale`` is Fira's
    factor, ``--update-proj-gap`` the interval of costly refreshes. A basis or side in ``keep`` is
    the method itself, and a flag for it an error.
    """
    parameters = inspect.signature(method).parameters

    def build(config: PretrainConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
        choices = {"basis": config.basis, "side": config.side}
        for name, choice in choices.items():
            if choice is not None and name in keep:
                raise ValueError(f"--{name} {choice}: {config.optimizer} has a {name} of its own")
        flags = {
            "rank": config.rank,
            "update_proj_gap": config.update_proj_gap,
            "scale": config.scale,
            **({"seed": config.seed} if "seed" in parameters else {}),
        }
        return method(
            schedule,
            weight_decay=config.weight_decay,
            weight_dimension_numbers=fira_jax.match_paths(**MATRICES),
            **{name: flag for name, flag in flags.items() if name not in keep},
            **options | {name: choice for name, choice in choices.items() if choice is not None},
        )

    return build


def stateless(
    method: Callable[..., optax.GradientTransformation], **which: str | tuple[str, ...]
) -> Builder:
    """Builds a method without rank and gap, on the matrices that ``match_paths`` finds.

    ``--scale`` means the low-rank methods' factor; these keep their own.
    """

    def build(config: PretrainConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
        return method(
            schedule,
            weight_decay=config.weight_decay,
            weight_dimension_numbers=fira_jax.match_paths(**which),
        )

    return build


def adamw(config: PretrainConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Full-rank Adam with decoupled weight decay, the yardstick for quality and for memory."""
    return optax.adamw(schedule, weight_decay=config.weight_decay)


def m_fac(config: PretrainConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """M-FAC over all parameters; ``--rank`` is the number of gradients it remembers."""
    return fira_jax.m_fac(schedule, config.rank, config.weight_decay, momentum=0.9)


OPTIMIZERS: dict[str, Builder] = {
    "adamw": adamw,
    "fira": low_rank(fira_jax.fira),
    "fira_paper": low_rank(fira_jax.fira, form="paper"),
    "fira_tracked": low_rank(fira_jax.fira_tracked, keep=["update_proj_gap", "basis"]),
    "fira_orthogonal": low_rank(fira_jax.fira_orthogonal, keep=["update_proj_gap", "basis"]),
    "galore": low_rank(fira_jax.galore),
    "galore2": low_rank(fira_jax.galore2),
    "lotus": low_rank(fira_jax.lotus, keep=["update_proj_gap"]),
    "adarankgrad": low_rank(fira_jax.adarankgrad, keep=["basis"]),
    "ldadam": low_rank(fira_jax.ldadam, keep=["update_proj_gap", "scale", "basis"]),
    "subtrack": low_rank(fira_jax.subtrack, keep=["basis"]),
    "q_galore": low_rank(fira_jax.q_galore),
    "apollo": low_rank(fira_jax.apollo, keep=["scale"]),
    "apollo_mini": low_rank(fira_jax.apollo_mini, keep=["rank", "scale"]),
    "frugal": low_rank(fira_jax.frugal, keep=["scale"]),
    "gwt": low_rank(fira_jax.gwt),
    "dct_adamw": low_rank(fira_jax.dct_adamw, keep=["update_proj_gap", "scale"]),
    "trion": low_rank(fira_jax.trion, keep=["update_proj_gap", "scale"]),
    "sumo": low_rank(fira_jax.sumo, keep=["scale"]),
    "vlorp": low_rank(fira_jax.vlorp, keep=["scale"]),
    "alice": low_rank(fira_jax.alice, keep=["scale"]),
    "alice_0": low_rank(fira_jax.alice, keep=["scale"], basis=fira_jax.basis.Switching(decay=0.0)),
    "gradnormlorp": low_rank(fira_jax.gradnormlorp, keep=["scale"]),
    "racs": stateless(fira_jax.racs, **MATRICES),
    "swan": stateless(fira_jax.swan, **MATRICES),
    "sinkgd": stateless(fira_jax.sinkgd, **MATRICES),
    "m_fac": m_fac,
    "scale": stateless(fira_jax.scale_optimizer, exclude="norm"),
}


def learning_rate_schedule(config: PretrainConfig) -> optax.Schedule:
    """Linear warmup from 0 to ``lr``, then a cosine down to ``min_lr_ratio`` of it at the end."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.lr,
        warmup_steps=config.warmup_steps,
        decay_steps=config.steps,
        end_value=config.lr * config.min_lr_ratio,
    )


def build_optimizer(
    config: PretrainConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """The named optimizer on ``schedule``, behind what the run asks for.

    That is global-norm clipping (which a layerwise step does itself), and the test that says how
    large the next batch should be.
    """
    if config.optimizer not in OPTIMIZERS:
        names = ", ".join(sorted(OPTIMIZERS))
        hint = did_you_mean(config.optimizer, OPTIMIZERS)
        raise ValueError(f"unknown optimizer {config.optimizer!r}; choose from: {names}{hint}")
    optimizer = OPTIMIZERS[config.optimizer](config, schedule)
    if config.watch:
        optimizer = fira_jax.measured(optimizer)
    if config.grad_clip > 0 and not config.layerwise:
        optimizer = optax.chain(optax.clip_by_global_norm(config.grad_clip), optimizer)
    if config.adaptive_batch > 0:  # examples are sequences; the test sees the gradient as it came
        test = fira_jax.transforms.adapt_batch_size(
            config.batch_size, config.max_batch_size, config.adaptive_batch
        )
        optimizer = optax.chain(test, optimizer)
    return optimizer
