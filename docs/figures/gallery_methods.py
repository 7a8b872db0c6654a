"""The methods of the gallery; a new one joins by an entry, see tests/project/test_gallery.py."""

import dataclasses
from collections.abc import Callable
from typing import Any

import optax

import fira_jax


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the gallery.

    Attributes:
        name: As in ``--optimizer``.
        title: As people write it.
        source: Its paper on arXiv, or where these pages tell of it.
        state: Numbers kept for one matrix with sides a <= b at rank r, as a sum of products that
            the tests evaluate; with words in it, only shown.
        moves: What part of the gradient moves, and how.
        options: Arguments beside learning rate and rank.
        oriented: Whether a is the input side, whichever is longer.
        function: As in ``fira_jax``, if it has another name there.
        build: What makes it, if it is not a function of ``fira_jax``.
    """

    name: str
    title: str
    source: str
    state: str
    moves: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    oriented: bool = False
    function: str | None = None
    build: Callable[..., Any] | None = None

    def transformation(self, rank: int) -> optax.GradientTransformation:
        """The method at learning rate 1 and, if it has one, this rank."""
        if self.build is not None:
            return self.build(1.0)
        options = {"rank": rank, **self.options}
        if options["rank"] is None:
            del options["rank"]
        return getattr(fira_jax, self.function or self.name)(1.0, **options)


NO_RANK: dict[str, Any] = {"rank": None}

METHODS = [
    Method("adamw", "AdamW", "1711.05101", "2ab",
           "all of it, every entry scaled by its own history", build=optax.adamw),
    Method("fira", "Fira", "2410.01623", "ar + 2br + 1",
           "Adam in the subspace; the rest, column by column, scaled as Adam scaled the subspace"),
    Method("fira_tracked", "tracked Fira", "../results/reproduce.md", "ar + 2br + 1",
           "as Fira, in a subspace that follows by power iteration, with moments that turn along"),
    Method("fira_orthogonal", "orthogonalized Fira", "../guides/fira_orthogonal.md", "ar + 2br",
           "all of it: tracked Fira's update, then all of its directions at one size"),
    Method("galore", "GaLore", "2403.03507", "ar + 2br",
           "Adam in the leading subspace, nothing outside"),
    Method("galore2", "GaLore 2", "2504.20437", "ar + 2br",
           "as GaLore; the subspace comes from a sketch, which many devices can share"),
    Method("q_galore", "Q-GaLore", "2407.08296", "ar in 4 bits, 2br in 8",
           "as GaLore, rounded, with ever rarer refreshes"),
    Method("apollo", "APOLLO", "2412.05270", "2br + 1",
           "the raw gradient, column by column scaled as Adam scales a random sketch of it"),
    Method("apollo_mini", "APOLLO-Mini", "2412.05270", "2b + 1",
           "the raw gradient, scaled as a whole by a sketch of rank 1", {"rank": 1}),
    Method("frugal", "FRUGAL", "2411.07837", "2br + r",
           "Adam on some rows, the sign of the gradient on all others"),
    Method("gwt", "GWT", "2501.07237", "2br + 1",
           "Adam on block means (Haar wavelet); details divided by the denominators above them",
           oriented=True),
    Method("lotus", "Lotus", "2602.01233", "ar + 3br + 1",
           "as GaLore; a new subspace when gradients have stopped moving in the old one"),
    Method("adarankgrad", "AdaRankGrad", "2410.17881", "ar + 2br + 3",
           "as GaLore, in no more directions than the gradient needs (r at most)"),
    Method("ldadam", "LDAdam", "2410.16103", "ar + 2br + ab",
           "Adam in a subspace learnt anew at every step; what is missed comes with the next"),
    Method("subtrack", "SubTrack++", "2502.01586", "ar + 2br + 1",
           "as Fira, in a subspace that turns towards the gradient instead of jumping"),
    Method("dct_adamw", "DCT-AdamW", "2505.17967", "2br + r",
           "Adam on the cosine transform's strongest components, chosen anew at every step"),
    Method("trion", "Trion", "2505.17967", "ab + r",
           "momentum's strongest cosine components, all directions of them alike"),
    Method("sumo", "SUMO", "2505.24749", "ar + br + 1",
           "momentum in the subspace, all directions of it alike; the rest as it is"),
    Method("vlorp", "VLoRP", "2505.01744", "br + a + b",
           "momentum in a random subspace, divided at full size by two vectors"),
    Method("alice", "Alice", "2502.07752", "ar + 2br + rr + b + 1",
           "Adam in a subspace, part of it random; the rest with its columns brought to one size"),
    Method("gradnormlorp", "GradNormLoRP", "2412.19616", "ar + br + 2rr + 2b",
           "the direction of each output's weights, in leading subspaces of both sides; its length",
           oriented=True),
    Method("racs", "RACS", "2502.07752", "a + b + 1",
           "all of it, rows and columns scaled by their usual size", NO_RANK),
    Method("swan", "SWAN", "2412.13148", "0",
           "all of it, standardized by columns, all directions alike", NO_RANK),
    Method("sinkgd", "SinkGD", "2502.06742", "0",
           "all of it, rows and columns alike in size", NO_RANK),
    Method("scale", "SCALE", "2506.16659", "0",
           "all of it, columns alike in size; momentum (ab) in the last layer only",
           {"rank": None, "last_layer": None}, function="scale_optimizer"),
    Method("m_fac", "M-FAC", "2107.03356", "rab",
           "the gradient less what the last r gradients repeat (and r² numbers for the model)"),
]  # fmt: skip
