"""Ways to break the library, each of which the suite must notice.

``mutation.py`` applies them one by one. ``old`` occurs exactly once in the file, which
``test_mutants_apply.py`` checks.
"""

from __future__ import annotations

from mutant import Mutant
from mutants_of_the_family import MUTANTS_OF_THE_FAMILY

REFERENCE = "methods/test_reference.py"
BASIS = "basis/test_basis.py"
ERRORS = "contracts/test_errors.py"
HOSTILE = "campaigns/test_hostile.py"
LIMITER = "transforms/test_residual_and_limiter.py"
MOMENTS = "transforms/test_moments.py"
PROPERTIES = "contracts/test_properties.py"
REFRESH = "refresh/test_refresh.py"


MUTANTS = [
    # --- the subspace's Adam
    Mutant(
        "first moment decays by β₂",
        "transforms/adam.py",
        "m = jnp.asarray(b1, wide) * m + jnp.asarray(1 - b1, wide) * grad",
        "m = jnp.asarray(b2, wide) * m + jnp.asarray(1 - b2, wide) * grad",
    ),
    Mutant(
        "1 - β₁ where 1 - β₂ belongs",
        "transforms/adam.py",
        "jnp.asarray(1 - b2, wide) * jnp.square(grad)",
        "jnp.asarray(1 - b1, wide) * jnp.square(grad)",
    ),
    Mutant(
        "second moment of |R| instead of R²",
        "transforms/adam.py",
        "jnp.asarray(1 - b2, wide) * jnp.square(grad)",
        "jnp.asarray(1 - b2, wide) * jnp.abs(grad)",
    ),
    Mutant(
        "ε inside the root",
        "transforms/adam.py",
        "denominator = root(v) + small",
        "denominator = root(v + small)",
    ),
    Mutant(
        "ε on the corrected root",
        "transforms/adam.py",
        "denominator = root(v) + small",
        "denominator = root(v) + small * root(correction2)",
    ),
    Mutant(
        "bias corrected twice",
        "transforms/adam.py",
        'elif bias_correction == "outside":\n        step',
        'if bias_correction != "none":\n        step',
    ),
    Mutant(
        "bias correction one step late",
        "transforms/adam.py",
        "one_minus_power(b1, count), one_minus_power(b2, count)",
        "one_minus_power(b1, count + 1), one_minus_power(b2, count + 1)",
    ),
    Mutant(
        "1 - βᵗ by subtraction, which cancels in float32",
        "transforms/coordinates.py",
        "return -jnp.expm1(steps * float(np.log(decay)))",
        "return 1 - jnp.float32(decay) ** steps",
        (MOMENTS,),
    ),
    Mutant(
        "step scale c left out",
        "transforms/adam.py",
        "step_scale=node.step_scale * correction",
        "step_scale=node.step_scale",
    ),
    Mutant(
        "parameters that are not projected without bias correction",
        "transforms/adam.py",
        "return (correction * core).astype(leaf.dtype), *stored",
        "return core.astype(leaf.dtype), *stored",
    ),
    Mutant(
        "α on parameters that are not projected",
        "transforms/adam.py",
        "return (correction * core).astype(leaf.dtype), *stored",
        "return (low_rank.scale * correction * core).astype(leaf.dtype), *stored",
    ),
    Mutant(
        "moments reset at a refresh",
        "transforms/adam.py",
        "grad, m, v = (x.astype(wide) for x in (grad, mu, nu))",
        "keep = state.count % low_rank.update_proj_gap != 0\n"
        "            grad, m, v = (x.astype(wide) for x in (grad, keep * mu, keep * nu))",
    ),
    Mutant(
        "second moment carried like the first",
        "transforms/adam.py",
        "return turn @ m, jnp.square(turn) @ v",
        "return turn @ m, turn @ v",
    ),
    Mutant(
        "moments carried between refreshes instead of at them",
        "transforms/adam.py",
        "jax.lax.cond(jnp.any(refreshed), carried",
        "jax.lax.cond(~jnp.any(refreshed), carried",
    ),
    Mutant(
        "rotation from the new basis to the old",
        "transforms/entering.py",
        '"...ar,...aq->...rq", basis, before',
        '"...ar,...aq->...rq", before, basis',
    ),
    Mutant(
        "result of the inner optimizer dropped",
        "transforms/in_subspace.py",
        "return leaf.replace(core=core.astype(leaf.raw.dtype)), core",
        "return leaf, core",
        (MOMENTS,),
    ),
    Mutant(
        "inner optimizer sees full-size parameters",
        "transforms/in_subspace.py",
        "seen = leaf.view.project(leaf.basis, leaf.view.to_matrix(param))",
        "seen = leaf.raw",
        (MOMENTS,),
    ),
    # --- the residual
    Mutant(
        "residual with the wrong sign",
        "transforms/project.py",
        "inside.append(-node.residual_leak * s * node.raw)",
        "inside.append(node.residual_leak * s * node.raw)",
    ),
    Mutant(
        "norms along the wrong axis",
        "norms.py",
        "return jnp.expand_dims(jnp.sum(jnp.square(wide), axis), -2)",
        "return jnp.sum(jnp.square(wide), axis=-1, keepdims=True)",
    ),
    Mutant(
        "norms along the compressed side of a tall matrix",
        "matrix_view.py",
        "return column_energy(matrix, -2 if self.compress_input else -1)",
        "return column_energy(matrix)",
    ),
    Mutant(
        "norms of absolute values",
        "norms.py",
        "jnp.sum(jnp.square(wide), axis)",
        "jnp.sum(jnp.abs(wide), axis)",
    ),
    Mutant(
        "ratio of energies instead of norms",
        "transforms/residual.py",
        "return (root(after) / (root(before) + eps)).astype(node.raw.dtype)",
        "return (after / (before + eps)).astype(node.raw.dtype)",
    ),
    Mutant(
        "one scale for the matrix where each column has its own",
        "transforms/residual.py",
        'if granularity == "matrix":\n        after',
        'if granularity == "column":\n        after',
    ),
    Mutant(
        "κ = 1 in the released form",
        "transforms/residual.py",
        "residual_scale=phi, residual_leak=node.scale)",
        "residual_scale=phi, residual_leak=jnp.ones_like(node.scale))",
    ),
    Mutant(
        "α on the residual in the released form",
        "transforms/residual.py",
        "residual_scale=phi, residual_leak=node.scale)",
        "residual_scale=node.scale * phi, residual_leak=node.scale)",
    ),
    Mutant(
        "no α on the residual in the paper's form",
        "transforms/residual.py",
        "residual_scale=node.scale * phi, residual_leak=jnp",
        "residual_scale=phi, residual_leak=jnp",
    ),
    Mutant(
        "half of the cross term in the norm",
        "transforms/residual.py",
        "whole - 2 * kappa * inside",
        "whole - kappa * inside",
    ),
    Mutant(
        "norm as if every basis were orthonormal",
        "transforms/residual.py",
        "if not node.orthonormal:",
        "if False:",
        (LIMITER,),
    ),
    Mutant(
        "bfloat16 basis taken for orthonormal",
        "transforms/entering.py",
        "for x in (basis, matrix)) >= 32",
        "for x in (basis, matrix)) >= 16",
        (LIMITER,),
    ),
    Mutant(
        "rounding taken for a residual",
        "transforms/residual.py",
        "columns > noise * whole",
        "columns > 0",
        (LIMITER,),
    ),
    Mutant(
        "scale not squared in the norm",
        "transforms/residual.py",
        "weights = jnp.square(node.residual_scale)",
        "weights = node.residual_scale",
    ),
    Mutant(
        "norm at full rank not squared",
        "transforms/residual.py",
        "columns = jnp.square(1 - kappa) * inside",
        "columns = (1 - kappa) * inside",
        (LIMITER,),
    ),
    # --- the limiter
    Mutant(
        "γ off by 1e-3",
        "transforms/limiter.py",
        "gamma * (previous + eps)",
        "(gamma + 1e-3) * (previous + eps)",
    ),
    Mutant(
        "limiter remembers the norm before limiting",
        "transforms/limiter.py",
        "jnp.where(known, norm * shrink, previous)",
        "jnp.where(known, norm, previous)",
    ),
    Mutant(
        "limiter forgets at a step without a residual",
        "transforms/limiter.py",
        "jnp.where(known, norm * shrink, previous)",
        "jnp.where(jnp.isfinite(norm), norm * shrink, previous)",
        (LIMITER,),
    ),
    Mutant(
        "a previous norm of 0 counts",
        "transforms/limiter.py",
        "jnp.where(previous > 0, gamma",
        "jnp.where(previous >= 0, gamma",
    ),
    Mutant(
        "limiter lifts small residuals",
        "transforms/limiter.py",
        "jnp.minimum(allowed / norm, 1)",
        "allowed / norm",
    ),
    Mutant(
        "infinite norm enters the limiter",
        "transforms/limiter.py",
        "known = jnp.isfinite(norm) & (norm > 0)",
        "known = norm > 0",
        (LIMITER,),
    ),
    Mutant(
        "limiter's state in the parameter's dtype",
        "refresh/norm_decay.py",
        "jnp.promote_types(dtype, jnp.float32)",
        "dtype",
        (PROPERTIES,),
    ),
    # --- in and out of the subspace
    Mutant(
        "α left out",
        "transforms/project.py",
        "inside.append(node.step_scale * node.scale * node.core)",
        "inside.append(node.step_scale * node.core)",
    ),
    Mutant(
        "step scale c not on the residual",
        "transforms/project.py",
        "s = node.step_scale * node.residual_scale",
        "s = node.residual_scale",
    ),
    Mutant(
        "basis of the step before",
        "transforms/entering.py",
        "for stored in (new, old)",
        "for stored in (old, old)",
    ),
    Mutant(
        "coordinates of an unusable gradient let in",
        "transforms/entering.py",
        "return jnp.where(usable, raw, 0), ",
        "return raw, ",
        (LIMITER,),
    ),
    Mutant(
        "unusable gradient in the residual",
        "transforms/project.py",
        "jnp.where(node.usable, node.view.canonical(s) * node.matrix, 0)",
        "node.view.canonical(s) * node.matrix",
        (LIMITER,),
    ),
    Mutant(
        "NaN let into parameters that are not projected",
        "transforms/project.py",
        "x if i in projected else _finite(x)",
        "x",
        (LIMITER,),
    ),
    Mutant(
        "product accumulated in bfloat16",
        "matrix_view.py",
        "accumulate = jnp.promote_types(matrix.dtype, jnp.float32)",
        "accumulate = matrix.dtype",
        (PROPERTIES,),
    ),
    Mutant(
        "batch axes mixed into the matrix",
        "matrix_view.py",
        "return self.batch_axes + self.input_axes + self.output_axes",
        "return self.input_axes + self.batch_axes + self.output_axes",
        (PROPERTIES,),
    ),
    # --- which weights, which side
    Mutant(
        "long side compressed for the short",
        "plan.py",
        '(m < n) == (side == "short")',
        '(m < n) == (side == "long")',
    ),
    Mutant(
        "square matrices compress the output axis",
        "plan.py",
        "m == n or (m < n)",
        "m != n and (m < n)",
    ),
    Mutant(
        "rank not clipped to the short side",
        "plan.py",
        "rank, a, b if clip else a)",
        "rank, max(a, rank))",
    ),
    Mutant(
        "duplicated axes accepted",
        "plan.py",
        "if len({*reduction, *output}) != len(reduction) + len(output):",
        "if False:",
        (ERRORS,),
    ),
    Mutant(
        "integer parameters accepted",
        "plan.py",
        "if not jnp.issubdtype(x.dtype, jnp.floating):",
        "if not jnp.issubdtype(x.dtype, jnp.number):",
        (ERRORS,),
    ),
    # --- the refresh
    Mutant(
        "refresh one step late",
        "refresh/scheduled.py",
        "jnp.broadcast_to(count % gap == 0",
        "jnp.broadcast_to(count % gap == 1",
    ),
    Mutant(
        "gap longer by one",
        "transforms/project.py",
        "rule.due(memory[i], state.count, gap, index, total)",
        "rule.due(memory[i], state.count, gap + 1, index, total)",
    ),
    Mutant(
        "step not counted",
        "transforms/weight_norm.py",
        "optax.safe_increment(state.count)",
        "state.count",
    ),
    Mutant(
        "staggered refreshes all at once",
        "refresh/scheduled.py",
        "count % gap == jnp.asarray(index) * gap // total",
        "count % gap == 0 * jnp.asarray(index)",
        (REFRESH,),
    ),
    Mutant(
        "zero gradient factorized",
        "refresh/replace.py",
        "usable = jnp.isfinite(largest) & (largest >=",
        "usable = jnp.isfinite(largest) & (0 <=",
        (BASIS,),
    ),
    Mutant(
        "infinite gradient factorized",
        "refresh/replace.py",
        "usable = jnp.isfinite(largest) & (largest",
        "usable = ~jnp.isnan(largest) & (largest",
        (REFRESH,),
    ),
    Mutant(
        "the basis's own rounding taken for a residual",
        "transforms/residual.py",
        "noise = max(32 * jnp.finfo(columns.dtype).eps, (2 * rounding) ** 2)",
        "noise = 32 * jnp.finfo(columns.dtype).eps",
        (LIMITER,),
    ),
    Mutant(
        "gradient not scaled before its factorization",
        "refresh/replace.py",
        "grad.astype(wide) / unit",
        "grad.astype(wide)",
        (BASIS,),
    ),
    Mutant(
        "refresh when none is due",
        "refresh/dealing.py",
        "jax.lax.cond(due, lambda: find(read(where), old)",
        "jax.lax.cond(True, lambda: find(read(where), old)",
        (REFRESH,),
    ),
    Mutant(
        "position of a stack taken for a side",
        "refresh/replace.py",
        "together[(i,) if view.batch_shape else view.compress_input]",
        "together[i if view.batch_shape else view.compress_input]",
        (REFRESH,),
    ),
    Mutant(
        "seed ignored",
        "transforms/project.py",
        "key_of(low_rank.seed,",
        "key_of(0,",
        (BASIS,),
    ),
    Mutant(
        "the same randomness at every refresh",
        "transforms/project.py",
        "state.count // gap)",
        "0)",
        (BASIS,),
    ),
    # --- the bases
    Mutant(
        "signs as the library returns them",
        "basis/protocol.py",
        "return jnp.where(pivot < 0, -vectors, vectors)",
        "return vectors",
    ),
    Mutant(
        "sign of the largest entry instead of the entry of largest magnitude",
        "basis/protocol.py",
        "largest = jnp.argmax(jnp.abs(vectors), axis=-2, keepdims=True)",
        "largest = jnp.argmax(vectors, axis=-2, keepdims=True)",
    ),
    Mutant(
        "last singular vectors instead of the first",
        "basis/svd.py",
        "canonical_signs(left[:, :rank])",
        "canonical_signs(left[:, -rank:])",
    ),
    Mutant(
        "no oversampling",
        "basis/randomized.py",
        "columns = min(rank + self.oversample, *grad.shape)",
        "columns = min(rank, *grad.shape)",
        (BASIS,),
    ),
    Mutant(
        "no power iterations",
        "basis/randomized.py",
        "for _ in range(self.power_iterations):",
        "for _ in range(0):",
        (BASIS,),
    ),
    Mutant(
        "weakest directions of the sketch instead of the strongest",
        "basis/randomized.py",
        "rotation[:, ::-1][:, :rank]",
        "rotation[:, :rank]",
        (BASIS,),
    ),
    Mutant(
        "Gram matrix not shifted",
        "basis/randomized.py",
        "gram + shift * jnp.eye(k, dtype=span.dtype)",
        "gram",
        (BASIS,),
    ),
    Mutant(
        "last pass shifted like the others",
        "basis/randomized.py",
        "last=i == 4",
        "last=False",
        (BASIS,),
    ),
    Mutant(
        "missing directions not filled",
        "basis/randomized.py",
        "span = span + 1e-4 *",
        "span = span + 0 *",
        (BASIS,),
    ),
    Mutant(
        "random basis of the wrong variance",
        "basis/random.py",
        "/ math.sqrt(rank)",
        "/ rank",
        (BASIS,),
    ),
    Mutant(
        "a key of the kind that JAX's settings say",
        "random_bits.py",
        'jax.random.key(seed, impl="threefry2x32")',
        "jax.random.key(seed)",
        ("contracts/test_randomness.py",),
    ),
    Mutant(
        "DCT columns chosen by their sum",
        "basis/dct.py",
        "jnp.sum(size(coefficients), axis=1)",
        "jnp.sum(coefficients, axis=1)",
        (BASIS,),
    ),
    Mutant(
        "constant DCT vector too long",
        "basis/dct.py",
        "jnp.sqrt(1 / a), vectors",
        "jnp.sqrt(2 / a), vectors",
        (BASIS,),
    ),
    # --- the named methods
    Mutant(
        "weight decay with the wrong sign",
        "methods/fira.py",
        "*descent(learning_rate, weight_decay, mask)",
        "*descent(learning_rate, -weight_decay, mask)",
    ),
    Mutant(
        "weight decay left out of GaLore",
        "methods/galore.py",
        "*descent(learning_rate, weight_decay, mask)",
        "*descent(learning_rate, 0, mask)",
    ),
    Mutant(
        "form not passed on",
        "methods/fira.py",
        "fira_residual_scale(form, granularity=granularity)",
        "fira_residual_scale(granularity=granularity)",
    ),
    Mutant(
        "the paper's form with the released bias correction",
        "methods/fira.py",
        '"outside" if form == "released" else "inside"',
        '"outside"',
    ),
    Mutant(
        "bias_correction=False ignored",
        "methods/galore.py",
        '"outside" if bias_correction else "none"',
        '"outside"',
    ),
    Mutant(
        "signed similarity of successive bases",
        "refresh/lazy.py",
        "jnp.abs(jnp.sum(before * after, axis=-1))",
        "jnp.sum(before * after, axis=-1)",
        ("refresh/test_rules.py",),
    ),
    Mutant(
        "gap doubled before the queue is full",
        "refresh/lazy.py",
        "self.queue), -self.queue,",
        "self.queue), 1,",
        ("refresh/test_rules.py",),
    ),
    Mutant(
        "displacement for each check instead of each step",
        "refresh/displacement.py",
        "astype(direction.dtype)) / steps",
        "astype(direction.dtype)) / gap",
        ("refresh/test_rules.py",),
    ),
    Mutant(
        "norm compared without its average",
        "refresh/norm_decay.py",
        "average <= self.threshold",
        "norm <= self.threshold",
        ("refresh/test_rules.py",),
    ),
    Mutant(
        "a gradient that is not usable teaches the rule",
        "transforms/entering.py",
        "return jnp.where(where, new.astype(old.dtype), old)",
        "return new.astype(old.dtype)",
        ("refresh/test_rules.py",),
    ),
    Mutant(
        "variance carried without the mean",
        "transforms/adam.py",
        "jnp.abs(variance + jnp.square(turn @ mean))",
        "jnp.abs(variance)",
        ("methods/test_subspace_methods.py",),
    ),
    Mutant(
        "share of the energy of what was found",
        "basis/adaptive.py",
        "self.energy * jnp.sum(jnp.square(grad))",
        "self.energy * jnp.sum(energies)",
        ("methods/test_subspace_methods.py",),
    ),
    Mutant(
        "geodesic towards the error",
        "basis/tracked.py",
        "- u * jnp.sin(angle)",
        "+ u * jnp.sin(angle)",
        ("methods/test_subspace_methods.py",),
    ),
    Mutant(
        "power iteration forgets directions",
        "basis/tracked.py",
        "cholesky_qr(span + jnp.sqrt(jnp.finfo(span.dtype).eps) * basis)",
        "cholesky_qr(span)",
        ("methods/test_subspace_methods.py",),
    ),
    Mutant(
        "momentum's error fed back unscaled",
        "transforms/momentum_feedback.py",
        "lost = whole + gain * momentum",
        "lost = whole + momentum",
        ("methods/test_subspace_methods.py",),
    ),
    Mutant(
        "rank of a parameter ignored",
        "plan.py",
        "rank = rank[name]",
        "rank = max(rank.values())",
        ("methods/test_subspace_methods.py",),
    ),
]

MUTANTS += MUTANTS_OF_THE_FAMILY
