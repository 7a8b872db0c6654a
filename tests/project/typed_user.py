"""What a user's strict type checker sees: every public name, with the types that its page names.

Nothing runs this; ``test_typed_user`` hands it to mypy and pyright.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fira_jax
from fira_jax import basis, precision, refresh, transforms

Params = dict[str, jax.Array]
params: Params = {"w": jnp.ones((8, 16)), "b": jnp.ones(16)}
batch: jax.Array = jnp.ones((4, 16))
mesh: jax.sharding.Mesh = jax.make_mesh((1,), ("data",))
everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None))  # type: ignore[no-untyped-call]


def schedule(step: jax.typing.ArrayLike) -> jax.Array:
    return 1e-3 / (1 + jnp.asarray(step))


def decayed(tree: Params) -> dict[str, bool]:
    return {name: array.ndim > 1 for name, array in tree.items()}


def refresh_now(step: jax.Array, gap: jax.typing.ArrayLike, first: int, matrices: int) -> jax.Array:
    numbers = first + jnp.arange(matrices)
    return (step + numbers) % gap == 0


# --- methods ----------------------------------------------------------------------------------

a_dtype = jnp.float32
of_choices: list[optax.GradientTransformationExtraArgs] = [
    fira_jax.fira(1e-3),
    fira_jax.fira(schedule, rank=0.25, side="input", moments="reset"),
    fira_jax.fira(jnp.float32(1e-3), 8, 200, 0.25, optax.scale_by_lion(), 0.1, decayed),
    fira_jax.fira(1e-3, weight_dimension_numbers=fira_jax.match_paths(("attn", "mlp"))),
    fira_jax.fira(1e-3, basis=basis.Quantized(), refresh=refresh_now, mu_dtype="bfloat16"),
    fira_jax.fira(1e-3, gamma=None, form="paper", granularity="matrix", nu_dtype=a_dtype),
    fira_jax.fira(1e-3, refresh=refresh.Lazy(), basis_dtype=jnp.bfloat16, seed=3),
    fira_jax.fira_tracked(1e-3, rank=4, update_proj_gap=10),
    fira_jax.fira_orthogonal(1e-3, rank=4, ns_steps=3),
    fira_jax.galore(1e-3, rank=4, basis="svd", moments="carry", bias_correction=False),
    fira_jax.galore2(1e-3, rank=4, basis=basis.Randomized(oversample=4)),
    fira_jax.q_galore(1e-3, rank=4, rounding="nearest", min_size=None),
    fira_jax.adarankgrad(1e-3, rank=4, carry="central", refresh=refresh.NormDecay()),
    fira_jax.alice(1e-3, rank=4, residual_scale=0.4, gamma=None),
    fira_jax.apollo(1e-3, rank=4, granularity="matrix"),
    fira_jax.apollo_mini(1e-3, scale=128.0),
    fira_jax.dct_adamw(1e-3, rank=4, error_feedback=True),
    fira_jax.frugal(1e-3, rank=0.25, rule="sgd", basis=basis.RandK()),
    fira_jax.gradnormlorp(1e-3, rank=4),
    fira_jax.gwt(1e-3, rank=0.25),
    fira_jax.ldadam(1e-3, rank=4, rho=0.9),
    fira_jax.lotus(1e-3, rank=4, refresh=refresh.Displacement(gamma=0.01)),
    fira_jax.racs(1e-3, elsewhere=optax.scale_by_adam(), rounds=5),
    fira_jax.scale_optimizer(1e-3, last_layer="head", momentum=0.9),
    fira_jax.sinkgd(1e-3, rounds=5),
    fira_jax.subtrack(1e-3, rank=4, basis=basis.Grassmann(), form="released"),
    fira_jax.sumo(1e-3, rank=4, factor="newton_schulz", size="muon"),
    fira_jax.swan(1e-3, standardized=False),
    fira_jax.trion(1e-3, rank=4, basis=basis.Dct()),
    fira_jax.vlorp(1e-3, rank=4, pieces=2),
    fira_jax.m_fac(1e-3, rank=16, gradient_dtype="bfloat16"),
    fira_jax.adadagrad(1e-3, 8, 64, granularity="model"),
    fira_jax.lora_pro(1e-3, scaling=2.0, moments="factors", names=("a", "b")),
]

# --- the walk ---------------------------------------------------------------------------------

low_rank = fira_jax.LowRank(
    rank=4, basis=basis.PowerIteration(), refresh=refresh.Scheduled(refresh_now), side="short"
)
walk: optax.GradientTransformation = optax.chain(
    fira_jax.low_rank_project(low_rank),
    fira_jax.scale_by_adam_in_subspace(low_rank, bias_correction="inside", carry="central"),
    fira_jax.fira_residual_scale("paper", granularity="column"),
    fira_jax.norm_growth_limit(low_rank, gamma=1.01, watch="subspace"),
    fira_jax.project_back(),
    optax.scale_by_learning_rate(schedule),
)
pieces: list[optax.GradientTransformation] = [
    fira_jax.low_rank_project_with_feedback(low_rank, momentum=0.9),
    fira_jax.momentum_feedback(fira_jax.LowRank(rank=4, moments="carry"), rho=0.9),
    fira_jax.in_subspace(low_rank, optax.trace(0.9), optax.scale_by_adam()),
    fira_jax.equalize_residual(low_rank),
    fira_jax.plain_residual("sgd", 0.5),
    fira_jax.replace_by_scaled_gradient(1.0, granularity="matrix"),
    fira_jax.residual_over_denominator(),
    fira_jax.project_back_by_factors(low_rank),
    fira_jax.on_matrices(optax.scale_by_rms(), optax.scale_by_adam()),
    transforms.scale_by_adagrad_norm(),
    transforms.scale_by_m_fac(),
    transforms.multi_normalize(
        transforms.standardize("input"), transforms.unit_rms("output"), transforms.whiten()
    ),
    transforms.orthogonalize(),
    transforms.proximal_l1(0.1, 0.1),
]


def halved(node: fira_jax.Subspace) -> fira_jax.Subspace:
    view: fira_jax.MatrixView = node.view
    shape: tuple[int, ...] = view.shape
    assert shape
    return node.replace(scale=node.scale / 2)


# --- a step, and what is around it ------------------------------------------------------------

tx = fira_jax.measured(fira_jax.fira(1e-3, rank=4))
state: optax.OptState = tx.init(params)
updates, state = tx.update(params, state, params)
new_params: Params = optax.apply_updates(params, updates)  # pyright: ignore[reportAssignmentType]
told: fira_jax.transforms.Metrics = fira_jax.metrics(state)

description: fira_jax.Description = fira_jax.describe(tx, params)
predicted: fira_jax.Memory = fira_jax.memory(tx, params)
shardings: optax.OptState = fira_jax.state_shardings(
    tx, params, jax.tree.map(lambda _: everywhere, params)
)
state = fira_jax.resize_state(tx, state, params)
ranks: Any = fira_jax.active_ranks(tx, state, params)
moved: optax.OptState = fira_jax.from_torch(
    fira_jax.galore(1e-3, rank=4),
    params,
    {
        "w": {
            "step": 3,
            "exp_avg": np.ones((16, 4)),
            "exp_avg_sq": np.ones((16, 4)),
            "ortho_matrix": np.eye(4, 8),
        },
        "b": {"step": 3, "exp_avg": np.ones(16), "exp_avg_sq": np.ones(16)},
    },
)

which: Callable[[Any], Any] = fira_jax.match_modules("attn", exclude="head")
by_pattern = fira_jax.match_paths({r"query/kernel$": (-3, (-2, -1))}, exclude=["head"])

layerwise: fira_jax.Layerwise = fira_jax.layerwise(
    tx,
    embed=lambda tree, tokens: tree["w"],
    block=lambda layer, x: x,
    head_loss=lambda tree, x, tokens: jnp.mean(x),
)
loss: jax.Array = fira_jax.chunked_cross_entropy(batch, jnp.ones((16, 32)), jnp.zeros(4, int))

eight_bit: optax.GradientTransformation = precision.quantize_state(tx)
rounded: optax.GradientTransformation = precision.round_stochastically(seed=1)
weights: Any = precision.quantize_weights(params)
weights = precision.apply_quantized_updates(weights, updates, step=0)
full: Any = precision.dequantize_weights(weights)

# --- one's own basis and rule -----------------------------------------------------------------


class WhenLarge(refresh.Rule):
    def due(
        self, memory: Any, count: jax.Array, gap: int, index: jax.typing.ArrayLike, total: int
    ) -> jax.Array:
        return count % gap + jnp.asarray(index) % total == 0


class FirstRows(basis.Basis):
    def init(self, a: int, rank: int, dtype: jax.typing.DTypeLike) -> jax.Array:
        return jnp.eye(a, rank, dtype=dtype)

    def find(self, grad: jax.Array, stored: jax.Array, rank: int, key: jax.Array) -> jax.Array:
        return stored

    def vectors(
        self, stored: jax.Array, a: int, rank: int, dtype: jax.typing.DTypeLike, key: jax.Array
    ) -> jax.Array:
        return stored.astype(dtype)


of_my_own = fira_jax.fira(1e-3, basis=FirstRows(), refresh=WhenLarge())
kinds: list[basis.Basis] = [
    basis.Adaptive(energy=0.9),
    basis.Columns(),
    basis.Grassmann(),
    basis.Haar(),
    basis.Oja(),
    basis.Random(),
    basis.Svd(),
    basis.Switching(),
]
