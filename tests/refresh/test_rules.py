"""Refresh rules that remember: each beside its own definition, written again in NumPy."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax.contrib import MuonDimensionNumbers
from support import normal

import fira_jax
from fira_jax.refresh import Displacement, Lazy, NormDecay

EVERY_MATRIX = {"weight_dimension_numbers": MuonDimensionNumbers(-2, -1)}


@dataclasses.dataclass(frozen=True)
class Axis(fira_jax.basis.Svd):
    """Two coordinate directions: the one that carries most of the gradient, then the next.

    With the gradient's sign, whatever it is.
    """

    def find(self, grad, stored, rank, key):
        largest = jnp.argmax(jnp.sum(jnp.square(grad), axis=1))
        places = (largest + jnp.arange(rank)) % len(grad)
        sign = jnp.where(jnp.sum(grad[largest]) < 0, -1, 1)
        return (sign * jax.nn.one_hot(places, len(grad), axis=0)).astype(stored.dtype)


def follow(low_rank, grads):
    """States before each step, nodes at each step, and the state at the end."""
    project = fira_jax.low_rank_project(low_rank)

    @jax.jit
    def run(grads):
        def step(state, grad):
            node, new = project.update(grad, state)
            return new, (state, node)

        return jax.lax.scan(step, project.init(jax.tree.map(lambda g: g[0], grads)), grads)

    last, (states, nodes) = run(grads)
    return states, nodes, last


def refreshes(states, last):
    """Steps at which the stored basis changed, from a run of one matrix."""
    after = np.concatenate([states.bases[1:], np.asarray(last.bases)[None]])
    return np.flatnonzero((np.asarray(states.bases) != after).any(axis=(1, 2))).tolist()


# --- lazy --------------------------------------------------------------------------------------


def lazy_reference(first_vectors, gap, threshold, queue, factor):
    """The steps of the refreshes, if the basis found at step t starts with first_vectors[t]."""
    at, cosines, previous, own = [], [], None, gap
    for t, vector in enumerate(first_vectors):
        if t % own:
            continue
        at.append(t)
        if previous is not None:
            cosines = [*cosines, abs(previous @ vector)][-queue:]
            if len(cosines) == queue and np.mean(cosines) >= threshold:
                own *= factor
        previous = vector
    return at


@pytest.mark.parametrize("queue", [1, 3])
@pytest.mark.parametrize("steady", [0.0, 0.7])
def test_lazy_doubles_the_gap_of_a_stable_matrix(steady, queue):
    steps, gap, threshold = 60, 2, 0.55
    rng = np.random.default_rng(queue)
    rows = np.where(rng.random(steps) < steady, 1, rng.integers(0, 5, steps))
    grads = normal(0, steps, 5, 7) * 1e-3
    grads[np.arange(steps), rows] += normal(1, steps, 7)  # of any sign
    low_rank = fira_jax.LowRank(2, gap, basis=Axis(), refresh=Lazy(threshold, queue))
    states, _, last = follow(low_rank, jnp.asarray(grads))
    expected = lazy_reference(np.eye(5)[rows], gap, threshold, queue, 2)
    gaps = [gap, *np.asarray(states.memory.gap)[1:], int(last.memory.gap)]
    ours = [t for t in range(steps) if t % gaps[t] == 0]
    assert ours == expected
    assert (len(ours) < steps // gap) == (max(gaps) > gap)
    assert max(gaps) > gap or steady == 0


def test_lazy_waits_for_a_full_queue_and_keeps_it():
    """An ever stable matrix, in units of the gap: 0, 1, 2, 3, 4, 5, 6, 8, 16 and so on."""
    grads = jnp.asarray(normal(0, 5, 7) * np.array([[9], [1], [1], [1], [1]]))
    low_rank = fira_jax.LowRank(2, 2, basis=Axis(), refresh="lazy")
    states, _, _ = follow(low_rank, jnp.broadcast_to(grads, (36, 5, 7)))
    gaps = np.asarray(states.memory.gap)
    due = [t for t in range(36) if gaps[t] == 0 or t % gaps[t] == 0]
    assert due == [0, 2, 4, 6, 8, 10, 12, 16, 32]


def test_lazy_starts_when_there_is_a_first_basis():
    """An unusable first gradient finds none: the next one does, and none counts as a turn."""
    grads = normal(0, 12, 5, 7)
    grads[0], grads[1], grads[2] = np.nan, 0, np.inf
    low_rank = fira_jax.LowRank(2, 5, basis="svd", refresh=Lazy(queue=3))
    states, _, last = follow(low_rank, jnp.asarray(grads))
    assert refreshes(states, last) == [3, 5, 10]
    assert np.asarray(states.memory.gap).tolist() == [0] * 4 + [5] * 8
    assert np.asarray(states.memory.cosines)[5].tolist() == [-3, -3, -3]
    empty, *found = last.memory.cosines
    assert empty == -3
    assert all(0 < x < 1 for x in found)


def test_lazy_works_with_bases_that_store_no_vectors():
    grads = jnp.asarray(normal(0, 6, 5, 7))
    _, _, last = follow(fira_jax.LowRank(2, 2, basis="dct", refresh=Lazy(queue=2)), grads)
    assert set(np.asarray(last.memory.cosines).round(4).tolist()) <= {0.0, 1.0}


# --- displacement ------------------------------------------------------------------------------


def displacement_reference(coordinates, gap, gamma):
    """The steps of the switches, for the projected gradients of a basis that never changes."""
    at, switch, counter, initial = [], True, 0, None
    for t, raw in enumerate(coordinates):
        direction = raw / np.linalg.norm(raw)
        started = switch
        if switch:
            at.append(t)
            initial, counter, switch = direction, 1, False
        counter += 1
        if not started and counter % gap == 0:
            switch = np.linalg.norm(direction - initial) / counter < gamma
    return at


@pytest.mark.parametrize(("gap", "noise"), [(1, 3.0), (2, 0.05), (5, 0.05), (5, 3.0)])
def test_displacement_switches_by_its_definition(gap, noise):
    grads = normal(0, 5, 7) + noise * normal(1, 80, 5, 7)
    gamma = 0.11
    low_rank = fira_jax.LowRank(2, gap, basis="svd", refresh=Displacement(gamma))
    states, nodes, last = follow(low_rank, jnp.asarray(grads))
    expected = displacement_reference(np.asarray(nodes.raw, float), gap, gamma)
    assert np.flatnonzero(np.asarray(states.memory.age) == 0).tolist() == expected
    assert refreshes(states, last) == expected
    assert 2 < len(expected) <= 40


def test_displacement_of_noise_is_a_hidden_schedule():
    """Nearly orthogonal gradients: sqrt(2) / gamma steps, rounded up to a check."""
    grads = normal(0, 330, 40, 60)
    low_rank = fira_jax.LowRank(4, 50, basis=Axis(), refresh=Displacement(0.01))
    states, _, _ = follow(low_rank, jnp.asarray(grads))
    at = np.flatnonzero(np.asarray(states.memory.age) == 0)
    assert at.tolist() == [0, 149, 298]


# --- the norm ----------------------------------------------------------------------------------


def norm_decay_reference(coordinates, gap, threshold, decay, shortest, relative):
    at, age = [], 0
    for t, raw in enumerate(coordinates):
        norm = np.linalg.norm(raw)
        if age == 0:
            at.append(t)
            initial = average = norm
        else:
            average = decay * average + (1 - decay) * norm
        age += 1
        small = average <= threshold * (initial if relative else 1)
        if age >= gap or (small and age >= shortest):
            age = 0
    return at


@pytest.mark.parametrize(
    ("threshold", "decay", "shortest", "relative"),
    [(0.8, 0.5, 1, True), (0.6, 0.0, 4, True), (2.0, 0.0, 1, False), (0.0, 0.9, 1, True)],
)
def test_norm_decay_refreshes_by_its_definition(threshold, decay, shortest, relative):
    gap = 9
    grads = normal(0, 50, 5, 7) * np.exp(0.7 * normal(1, 50, 1, 1))
    rule = NormDecay(threshold, decay, shortest, relative)
    states, nodes, last = follow(
        fira_jax.LowRank(2, gap, basis="svd", refresh=rule), jnp.asarray(grads)
    )
    expected = norm_decay_reference(
        np.asarray(nodes.raw, float), gap, threshold, decay, shortest, relative
    )
    assert refreshes(states, last) == expected
    assert (np.diff(expected) >= shortest).all()
    assert (np.diff(expected) <= gap).all()
    assert (len(expected) > 6) == (threshold > 0)


# --- all of them -------------------------------------------------------------------------------

RULES = {"lazy": Lazy(0.1, 1), "displacement": Displacement(0.4), "norm": NormDecay(0.9, 0.0)}


@pytest.mark.parametrize("rule", RULES)
def test_matrices_decide_for_themselves(rule):
    """A stack remembers for each of its matrices what it would remember of it alone."""
    grads = {
        "stack": normal(0, 14, 3, 8, 5) * np.exp(normal(1, 14, 3, 1, 1)),
        "wide": normal(2, 14, 5, 8) * np.exp(normal(3, 14, 1, 1)),
        "vector": normal(4, 14, 3),
    }
    low_rank = fira_jax.LowRank(2, 3, basis=Axis(), refresh=RULES[rule], **EVERY_MATRIX)
    alone = {f"{i}": grads["stack"][:, i] for i in range(3)} | {"wide": grads["wide"]}
    stacked, separate = (follow(low_rank, jax.tree.map(jnp.asarray, g))[2] for g in (grads, alone))
    for one, other in zip(
        jax.tree.leaves((stacked.memory, stacked.bases), is_leaf=lambda x: isinstance(x, dict)),
        jax.tree.leaves((separate.memory, separate.bases), is_leaf=lambda x: isinstance(x, dict)),
        strict=True,
    ):
        for got, expected in zip(
            jax.tree.leaves(one["stack"]),
            jax.tree.leaves(jax.tree.map(lambda *x: jnp.stack(x), *(other[i] for i in "012"))),
            strict=True,
        ):
            np.testing.assert_allclose(got, expected, atol=1e-5)
        for got, expected in zip(
            jax.tree.leaves(one["wide"]), jax.tree.leaves(other["wide"]), strict=True
        ):
            np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_an_unusable_gradient_teaches_nothing(rule):
    low_rank = fira_jax.LowRank(2, 2, basis=Axis(), refresh=RULES[rule])
    grads = normal(0, 9, 5, 7)
    grads[0], grads[4], grads[5] = 0, np.nan, np.inf
    states, _, last = follow(low_rank, jnp.asarray(grads))
    for x in jax.tree.leaves((states, last)):
        assert np.isfinite(x).all()
    for x in jax.tree.leaves(states.memory):
        np.testing.assert_array_equal(x[1], x[0])
        np.testing.assert_array_equal(x[6], x[4])
        assert (np.asarray(x[2]) != np.asarray(x[1])).any() or rule == "lazy"
    assert refreshes(states, last)[0] <= 1  # as soon as it can


@pytest.mark.parametrize(
    ("rule", "numbers"),
    [("fixed", 0), ("lazy", 5 + 1), (Displacement(), 2 * 7 + 1), (NormDecay(), 3)],
)
def test_memory_has_as_many_numbers_as_documented(rule, numbers):
    params = {"w": jnp.zeros((3, 5, 7)), "b": jnp.zeros(7)}
    low_rank = fira_jax.LowRank(2, refresh=rule, **EVERY_MATRIX)
    project = fira_jax.low_rank_project(low_rank)
    assert sum(x.size for x in jax.tree.leaves(project.init(params).memory)) == 3 * numbers
    described = fira_jax.describe(project, params).rows
    by_path = {row.path: row.state_bytes for row in described}
    assert by_path == {"w": 4 * 3 * (numbers + 5 * 2), "b": 0}


def test_memory_is_split_like_the_moments():
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    params = {"w": jax.ShapeDtypeStruct((3, 8, 16), jnp.float32)}
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x", None, None))
    tx = fira_jax.galore(1e-2, 2, refresh=Displacement(), **EVERY_MATRIX)
    memory = fira_jax.state_shardings(tx, params, {"w": split})[0].memory["w"]
    assert tuple(memory.age.spec) == ("x",)
    assert tuple(memory.initial.spec) == ("x", None, None)


def test_rules_refuse_what_they_cannot_do():
    tx = fira_jax.galore(1e-2, 2, basis="random", refresh="lazy")
    with pytest.raises(ValueError, match=r"refresh=Lazy\(.*needs a basis that is stored"):
        tx.init({"w": jnp.ones((5, 7))})
    with pytest.raises(TypeError, match="refresh must be"):
        fira_jax.LowRank(refresh=Lazy)  # the class, not an object
    for wrong in (
        lambda: Lazy(threshold=1.5),
        lambda: Lazy(queue=0),
        lambda: Lazy(factor=1),
        lambda: Displacement(0.0),
        lambda: NormDecay(-0.1),
        lambda: NormDecay(decay=1.0),
        lambda: NormDecay(shortest=0),
    ):
        with pytest.raises(ValueError, match="must"):
            wrong()
