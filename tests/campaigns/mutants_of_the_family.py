"""Mutants of the methods around Fira and of the pieces that only they have; see ``mutants.py``."""

from __future__ import annotations

from mutant import Mutant

# By file and by the test that must fail: what is broken, text in the source, what replaces it.
CHANGES: dict[tuple[str, str], list[tuple[str, str, str]]] = {
    ("basis/haar.py", "basis/test_directions.py"): [
        (
            "directions of blocks not of unit length",
            "1 / np.sqrt(np.maximum(self._lengths, 1))",
            "1 / np.maximum(self._lengths, 1)",
        ),
    ],
    ("basis/columns.py", "basis/test_directions.py"): [
        (
            "rows that were not chosen take those of the first that was",
            "jnp.where(found.any(-1), jnp.argmax(found, -1), indices.shape[-1])",
            "jnp.argmax(found, -1)",
        ),
    ],
    ("basis/columns.py", "methods/test_dct_methods.py"): [
        (
            "indices matched from the new basis to the old",
            "new[..., :, None] == old[..., None, :]",
            "old[..., :, None] == new[..., None, :]",
        ),
    ],
    ("basis/randk.py", "basis/test_directions.py"): [
        (
            "the same random entries in every column",
            "return (words % self.size).astype(jnp.int32)",
            "return jnp.zeros_like(words, jnp.int32)",
        ),
        (
            "random entries put back where they were not taken",
            "jnp.arange(self.size)[:, None] - self._turns",
            "jnp.arange(self.size)[:, None] + self._turns",
        ),
    ],
    ("basis/switching.py", "methods/test_alice.py"): [
        ("covariance that forgets nothing", "self.decay * covariance + (1", "covariance + (1"),
        ("tracked directions without the past", "return self.decay * tracked + new", "return new"),
        (
            "directions drawn anew in the space of those kept",
            "cholesky_qr(drawn - kept @ (kept.T @ drawn))",
            "cholesky_qr(drawn)",
        ),
    ],
    ("basis/adaptive.py", "methods/test_subspace_methods.py"): [
        (
            "one vector too few for the share of energy",
            "jnp.cumsum(energies) - energies",
            "jnp.cumsum(energies)",
        ),
        ("no smallest number of vectors", "jnp.arange(rank) < self.smallest", "False"),
    ],
    ("basis/tracked.py", "methods/test_subspace_methods.py"): [
        ("basis found anew instead of moved", "jnp.any(stored != 0),", "False,"),
        (
            "geodesic along the weakest direction of the error",
            "v = right[:, -1:]",
            "v = right[:, :1]",
        ),
    ],
    ("basis/quantized.py", "basis/test_quantized_basis.py"): [
        (
            "codes of every refresh thrown away",
            "return self._encode(self.inner.find(grad, old.astype(grad.dtype), rank, key))",
            "return stored",
        ),
    ],
    ("codes.py", "precision/test_quantize.py"): [
        (
            "second moments above zero get the code of zero",
            "code = jnp.where(signed, code, jnp.maximum(code, share > 0))",
            "code = code + 0",
        ),
        (
            "rounding by logarithms, which is biased",
            "(jnp.exp2((place - below) / _LEVELS_PER_OCTAVE) - 1) / step",
            "place - below",
        ),
    ],
    ("codes.py", "basis/test_quantized_basis.py"): [
        ("range of a block without zero", "keepdims=True, initial=0.0)", "keepdims=True)"),
        (
            "the halves of a byte exchanged",
            "jnp.concatenate([codes & 15, codes >> 4], axis=-1)",
            "jnp.concatenate([codes >> 4, codes & 15], axis=-1)",
        ),
    ],
    ("codes.py", "precision/test_quantized_weights.py"): [
        (
            "levels that follow the range, so that weights at rest drift",
            "jnp.ldexp(jnp.ceil(8 * part) / 8, power)",
            "jnp.ldexp(part, power)",
        ),
        (
            "ends of a group cut off",
            "_unless_zero((high - low) / (top - 1))",
            "_unless_zero((high - low) / (top + 1))",
        ),
    ],
    ("precision/quantized_state.py", "precision/test_quantize.py"): [
        (
            "the same rounding at every step",
            "encode(after, optax.safe_increment(state.count))",
            "encode(after, state.count)",
        ),
        ("small arrays in codes, too", "x.size < min_size or", "x.size < 2 or"),
    ],
    ("precision/quantized_weights.py", "precision/test_quantized_weights.py"): [
        (
            "weights rounded alike at every step",
            "random_bits(seed, step, name, x.codes.shape",
            "random_bits(seed, 0, name, x.codes.shape",
        ),
        ("seed of the weights' rounding ignored", "random_bits(seed, step", "random_bits(0, step"),
    ],
    ("precision/stochastic_rounding.py", "precision/test_rounding.py"): [
        ("bfloat16 rounded towards zero too often", "(bits >> 16)", "(bits >> 17)"),
        (
            "bfloat16 rounded alike at every step",
            "random_bits(seed, state.count, name",
            "random_bits(seed, 0, name",
        ),
        ("rounded once more after the random carry", "words & jnp.uint32(0xFFFF0000)", "words"),
    ],
    ("random_bits.py", "precision/test_rounding.py"): [
        ("all weights rounded alike", "zlib.crc32(name.encode())", "zlib.crc32(b'')"),
        ("rows of random numbers alike", "(row * jnp.uint32(0x9E3779B1) ^ salt)", "salt"),
    ],
    ("transforms/error_feedback.py", "methods/test_dct_methods.py"): [
        ("error feedback without momentum", "(1 - momentum) * node.raw", "node.raw"),
        ("unusable gradient becomes the error", "jnp.where(usable, missed, error)", "missed"),
    ],
    ("transforms/momentum_feedback.py", "methods/test_subspace_methods.py"): [
        (
            "basis from a momentum that is not corrected",
            "jnp.asarray(rho / correction, whole.dtype)",
            "jnp.asarray(rho, whole.dtype)",
        ),
        (
            "unusable gradient fed back",
            "jnp.where(node.usable, lost.astype(before.dtype), before)",
            "lost.astype(before.dtype)",
        ),
    ],
    ("transforms/factored.py", "methods/test_vlorp.py"): [
        ("energy of columns as if the basis were orthonormal", "((basis.mT @ basis) @ raw)", "raw"),
        (
            "first moment corrected as if it had never started anew",
            "age = state.count % low_rank.update_proj_gap + 1",
            "age = count",
        ),
        ("second moment of the coordinates", "weight = jnp.square(node.scale)", "weight = 1"),
    ],
    ("transforms/weight_norm.py", "methods/test_gradnormlorp.py"): [
        (
            "direction moves along the weight",
            "(g - along * unit).astype(grad.dtype)",
            "g.astype(grad.dtype)",
        ),
        (
            "weights that are all zero have a direction",
            "jnp.where(norm > 0, stretch * w - (1 + stretch) * rate * d, -rate * d)",
            "stretch * w - (1 + stretch) * rate * d",
        ),
        (
            "norms of input units",
            "jnp.square(x), axis=-2, keepdims",
            "jnp.square(x), axis=-1, keepdims",
        ),
    ],
    ("transforms/normalize.py", "methods/test_stateless.py"): [
        (
            "root of the sum of squares for that of their mean",
            "jnp.mean(jnp.square(x)",
            "jnp.sum(jnp.square(x)",
        ),
        (
            "rounding of a constant column blown up",
            "scale(jnp.where(varies, centred, 0))",
            "scale(centred)",
        ),
        ("one round only", "jax.lax.fori_loop(0, rounds, once, x)", "once(0, x)"),
        (
            "whitened matrix without its norm",
            "x * _divide(norm, _frobenius(x))",
            "x * norm",
        ),
    ],
    ("transforms/matrices.py", "methods/test_stateless.py"): [
        ("unusable matrix let in", "jnp.where(finite, matrix, 0)", "matrix"),
    ],
    ("transforms/equalize.py", "methods/test_alice.py"): [
        ("size of the residual without its dimension", "view.compressed_size - view.rank", "1"),
        (
            "residual's size at this step only",
            "energy = jnp.asarray(decay, wide) * energy + jnp.asarray(1 - decay, wide) * new",
            "energy = new",
        ),
    ],
    ("transforms/residual.py", "methods/test_frugal.py"): [
        (
            "sign of the whole gradient",
            "residual_leak=jnp.ones_like(node.scale),\n            residual_map=",
            "residual_leak=jnp.zeros_like(node.scale),\n            residual_map=",
        ),
    ],
    ("transforms/residual.py", "peers/test_apollo.py"): [
        (
            "α itself, not its root, on APOLLO's update",
            "jnp.sqrt(scale) * norm_ratio",
            "scale * norm_ratio",
        ),
    ],
    ("transforms/residual.py", "methods/test_gwt.py"): [
        ("details without the denominator", "node.scale / node.denominator", "node.scale"),
    ],
    ("transforms/norm_test.py", "transforms/test_norm_test.py"): [
        ("batches shrink", "jnp.maximum(state.batch_size, larger)", "larger"),
        ("norm test with η for its square", "jnp.square(eta)", "jnp.abs(eta)"),
        (
            "variance of micro-batches not unbiased",
            "examples_each / (count - 1)",
            "examples_each / count",
        ),
    ],
    ("transforms/lora_gradients.py", "methods/test_lora_pro.py"): [
        (
            "Sylvester equation left out",
            "adjusted = to_a + a @ x, to_b - x @ b",
            "adjusted = to_a, to_b",
        ),
        (
            "second factor follows what the first already does",
            "(to_b - (to_b @ b.mT) @ inverse_b @ b)",
            "to_b",
        ),
        (
            "factor of the product once instead of twice",
            "inverse_b / scaling**2",
            "inverse_b / scaling",
        ),
        (
            "unusable gradient of a factor let in",
            "jnp.where(usable[..., None, None], g, 0) for g",
            "g for g",
        ),
    ],
    ("ranks.py", "methods/test_subspace_methods.py"): [
        (
            "last vectors kept when the rank shrinks",
            "x[tuple(slice(size) for size in target)]",
            "x[tuple(slice(-size, None) for size in target)]",
        ),
        ("smallest rank of a stack", "used = jnp.max(", "used = jnp.min("),
    ],
    ("layer_by_layer/cross_entropy.py", "layer_by_layer/test_cross_entropy.py"): [
        (
            "columns of the last slice counted twice",
            "jnp.where(fresh, jnp.exp(logits - new), 0)",
            "jnp.exp(logits - new)",
        ),
        ("sum not brought to the new maximum", "total * jnp.exp(largest - new)", "total"),
        (
            "columns of the last slice in the gradient twice",
            "jnp.where(fresh, d_logits, 0).astype(x.dtype)",
            "d_logits.astype(x.dtype)",
        ),
    ],
    ("layer_by_layer/step.py", "layer_by_layer/test_layerwise.py"): [
        (
            "small gradients lengthened to the norm for clipping",
            "jnp.where(clipped_norm > clip_norm, clip_norm / clipped_norm, 1)",
            "clip_norm / clipped_norm",
        ),
    ],
    ("layer_by_layer/passes.py", "layer_by_layer/test_layerwise.py"): [
        (
            "tied entry without the gradient from above",
            "return jax.tree.map(jnp.add, self.embed_vjp(dx)[0], self.shared)",
            "return self.embed_vjp(dx)[0]",
        ),
        (
            "norm without the layers",
            "return (dx, energy + squared_norm(layer_grads), stacks), None",
            "return (dx, energy, stacks), None",
        ),
    ],
    ("layer_by_layer/micro_batches.py", "layer_by_layer/test_layerwise.py"): [
        ("last micro-batch only", "t + g.astype(t.dtype)", "g.astype(t.dtype)"),
    ],
    ("whole_matrices.py", "sharding/test_sharding.py"): [
        ("each stack's second matrix where its end was", "start += len(part)", "start += 1"),
        (
            "matrices straight from two split sides to whole",
            "sides = [(), names]",
            "sides = [(), ()]",
        ),
    ],
    ("sharding/split.py", "sharding/test_sharding.py"): [
        ("rank split", "inside = [(), b + a]", "inside = [b + a, ()]"),
        ("basis whole where devices could share it", "inside = [a + b, ()]", "inside = [a, ()]"),
    ],
    ("sharding/state.py", "sharding/test_sharding.py"): [
        (
            "state of parameters that are not projected on every device",
            "[()] * extra + axes if same else [()] * len(shape)",
            "[()] * len(shape)",
        ),
    ],
    ("transforms/adagrad_norm.py", "transforms/test_norm_test.py"): [
        ("unusable gradient in AdaGrad's sum", "jnp.where(usable, norm, 0)", "norm"),
    ],
    ("methods/adarankgrad.py", "methods/test_subspace_methods.py"): [
        ("AdaRankGrad's rule not passed on", "        refresh=refresh,\n", ""),
    ],
    ("methods/alice.py", "methods/test_alice.py"): [
        (
            "Alice's residual as large as the other part",
            "equalize_residual(low_rank, residual_scale, b1)",
            "equalize_residual(low_rank, 1.0, b1)",
        ),
    ],
    ("methods/apollo.py", "peers/test_apollo.py"): [
        (
            "APOLLO's granularity not passed on",
            "replace_by_scaled_gradient(scale, granularity=granularity)",
            "replace_by_scaled_gradient(scale)",
        ),
    ],
    ("methods/dct_adamw.py", "methods/test_dct_methods.py"): [
        ("moments not carried by DCT-AdamW", "        moments=moments,\n", ""),
    ],
    ("methods/frugal.py", "methods/test_frugal.py"): [
        ("size of the signs ignored", "plain_residual(rule, rule_scale)", "plain_residual(rule)"),
    ],
    ("methods/galore2.py", "methods/test_subspace_methods.py"): [
        ("GaLore 2 with GaLore's sketch", "        basis=basis,\n", ""),
    ],
    ("transforms/cores.py", "methods/test_gradnormlorp.py"): [
        ("α twice", "scale=1.0,", "scale=low_rank.scale,"),
        ("the same side compressed twice", 'side="long",', 'side="short",'),
    ],
    ("methods/gwt.py", "methods/test_gwt.py"): [
        ("limiter on the details", ', watch="subspace")', ")"),
    ],
    ("methods/ldadam.py", "methods/test_subspace_methods.py"): [
        (
            "feedback that cannot be switched off",
            "            error_feedback=error_feedback,\n",
            "",
        ),
    ],
    ("methods/lora_pro.py", "methods/test_lora_pro.py"): [
        ("LoRA-Pro's moments exchanged", 'if moments == "full"', 'if moments != "full"'),
    ],
    ("methods/lotus.py", "methods/test_subspace_methods.py"): [
        ("Lotus's rule not passed on", "        refresh=refresh,\n", ""),
    ],
    ("transforms/m_fac.py", "methods/test_m_fac.py"): [
        (
            "unusable gradient remembered",
            "jnp.where(usable, g.astype(w.dtype), w[place])",
            "g.astype(w.dtype)",
        ),
        ("damping not times the window", "rank * damping, place", "damping, place"),
        ("products with forgotten gradients", ".set(row).at[:, place].set(row)", ".set(row)"),
    ],
    ("methods/q_galore.py", "basis/test_quantized_basis.py"): [
        ("basis in full precision", "else bases.Quantized(basis)", "else basis"),
    ],
    ("transforms/row_column_scale.py", "methods/test_racs.py"): [
        ("row sizes of a scaled matrix", "s = s * jnp.square(largest)", "s = s * 1"),
        ("a zero gradient counts as a size", "known = largest > 0", "known = largest >= 0"),
    ],
    ("methods/scale_optimizer.py", "methods/test_stateless.py"): [
        (
            "momentum of normalized gradients",
            'optax.chain(memory, multi_normalize(unit_rms("input")), optax.scale(scale))',
            'optax.chain(multi_normalize(unit_rms("input")), memory, optax.scale(scale))',
        ),
    ],
    ("methods/sinkgd.py", "methods/test_stateless.py"): [
        (
            "columns normalized last",
            'unit_rms("input"), unit_rms("output")',
            'unit_rms("output"), unit_rms("input")',
        ),
    ],
    ("methods/subtrack.py", "methods/test_subspace_methods.py"): [
        (
            "paper's form of SubTrack not passed on",
            "fira_residual_scale(form)",
            "fira_residual_scale()",
        ),
        ("no recovery scaling", "        fira_residual_scale(form),\n", ""),
    ],
    ("methods/swan.py", "methods/test_stateless.py"): [
        ("rows standardized for columns", 'standardize("input")', 'standardize("output")'),
    ],
    ("transforms/turning.py", "transforms/test_turning.py"): [
        ("means turned back", "return turn @ m", "return turn.mT @ m"),
        (
            "squares turned as means are",
            "return jnp.square(turn) @ v",
            "return turn @ v",
        ),
    ],
    ("newton_schulz.py", "transforms/test_orthogonalization.py"): [
        (
            "one norm for all matrices of a stack",
            "norm = root(jnp.sum(jnp.square(x), axis=(-2, -1), keepdims=True))",
            "norm = root(jnp.sum(jnp.square(x)))",
        ),
        ("a step without its last term", "+ c * gram @ gram", ""),
    ],
    ("transforms/normalize.py", "methods/test_fira_orthogonal.py"): [
        ("orthogonal by the shorter side", "max(x.shape[-2:]) ** 0.5", "min(x.shape[-2:]) ** 0.5"),
    ],
    ("transforms/project.py", "methods/test_fira_orthogonal.py"): [
        ("the update leaves as it is", "if normalize is not None:", "if False:"),
    ],
    ("methods/fira_orthogonal.py", "methods/test_fira_orthogonal.py"): [
        ("orthogonalized Fira without its residual", "        fira_residual_scale(),\n", ""),
        ("orthogonalized Fira of another size", "direction(x) * consistent_rms", "direction(x)"),
    ],
    ("transforms/orthogonalization.py", "transforms/test_orthogonalization.py"): [
        ("size by the shorter side", "0.2 * max(m, n) ** 0.5", "0.2 * min(m, n) ** 0.5"),
        ("derivative of another product", "inside - inside.mT", "inside + inside.mT"),
        ("directions of the null space kept", "there = s > rounding", "there = s >= 0 * rounding"),
    ],
    ("methods/sumo.py", "methods/test_sumo.py"): [
        ("the limiter watches the residual", 'watch="core"', 'watch="residual"'),
        ("no residual", "if residual_scale is None", "if True"),
    ],
    ("subspace.py", "contracts/test_errors.py"): [
        (
            "fields that were computed with are let through",
            "if self.usable.dtype != jnp.bool_ or self.word.dtype != jnp.uint32:",
            "if False:",
        ),
    ],
    ("transforms/orthogonalization.py", "methods/test_dct_methods.py"): [
        ("shape factor upside down", "max(1.0, n / m)", "max(1.0, m / n)"),
    ],
    ("methods/vlorp.py", "methods/test_vlorp.py"): [
        ("number of pieces ignored", "pieces=1 if pieces is None else pieces", "pieces=1"),
    ],
}

MUTANTS_OF_THE_FAMILY = [
    Mutant(why, file, old, new, (test,))
    for (file, test), changes in CHANGES.items()
    for why, old, new in changes
]
