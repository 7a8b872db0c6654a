"""How well a model answers: the likelihood of the right answers, and how often it prefers them."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from flax import nnx

from experiments.llama.answers import features, nats_of
from experiments.text.answer_batches import AnswerRows, encode
from experiments.text.examples import Example, Part
from experiments.text.model_tokenizer import ModelTokenizer
from experiments.training.step import merge


@dataclasses.dataclass(frozen=True)
class Proportion:
    """How many of how many, with a 95 % interval (Wilson's)."""

    right: int
    count: int

    @property
    def value(self) -> float:
        """The share."""
        return self.right / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """Where the share of all such examples lies, at 95 % confidence.

        Example:
            >>> [round(x, 3) for x in Proportion(80, 100).interval]
            [0.711, 0.867]
        """
        found = scipy.stats.binomtest(self.right, self.count).proportion_ci(method="wilson")
        return float(found.low), float(found.high)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.1%} ({low:.1%} to {high:.1%}, {self.right} of {self.count})"


@dataclasses.dataclass(frozen=True)
class Score:
    """What a model makes of held-out examples.

    Attributes:
        loss: Nats per token of the right answers.
        accuracy: How often the right one of several answers is the likeliest; None where there is
            only one.
        by_length: The same, of likelihoods per byte of the answer: fairer to long ones.
    """

    loss: float
    accuracy: Proportion | None
    by_length: Proportion | None

    def as_values(self) -> dict[str, float]:
        """For a log."""
        accuracy = {"accuracy": self.accuracy.value} if self.accuracy else {}
        return {"eval_loss": self.loss} | accuracy


class Scorer:
    """Scores any weights of one model on the same examples.

    Args:
        graphdef: The model's structure.
        examples: To score on.
        tokenizer: The model's.
        seq_len: Longest row; longer texts lose their beginning.
        batch_size: Rows at a time.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        examples: Sequence[Example],
        tokenizer: ModelTokenizer,
        seq_len: int,
        batch_size: int,
    ):
        self._examples = examples
        self._graphdef = graphdef
        # Of an answer that is one of several only its own tokens count, not that the text ends.
        variants = [variant for example in examples for variant in _variants(example)]
        texts, _ = encode(variants, tokenizer, seq_len)
        self._tokens = np.array([text.learned.sum() for text in texts])
        # Rows of about the same length go together, padded to a multiple of 16.
        order = np.argsort([len(text.ids) for text in texts], kind="stable")
        self._batches: list[tuple[np.ndarray, dict[str, np.ndarray]]] = []
        most = int(self._tokens.max())
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            longest = max(len(texts[i].ids) for i in chosen)
            length = min(seq_len, -(-(longest - 1) // 16) * 16)
            rows = AnswerRows([texts[i] for i in chosen], length)
            padding = ((0, batch_size - len(chosen)), (0, 0))
            places = ((0, batch_size - len(chosen)), (0, most - rows.places.shape[1]))
            batch = {
                "tokens": np.pad(rows.tokens, padding),
                "places": np.pad(rows.places, places),
                "weights": np.pad(rows.counted, places),
            }
            self._batches.append((chosen, batch))

    def __call__(self, params: Any, frozen: Any = ()) -> Score:
        """Scores weights, as ``experiments.training.step.split`` gives them."""
        nats = np.zeros(len(self._tokens))
        waiting = [(i, _nats(self._graphdef, params, frozen, batch)) for i, batch in self._batches]
        for indices, values in waiting:
            nats[indices] = np.asarray(values)[: len(indices)]
        total, tokens, right, right_by_length, several = 0.0, 0, 0, 0, 0
        start = 0
        for example in self._examples:
            end = start + max(1, len(example.choices))
            gold = example.gold if example.choices else 0
            total += nats[start + gold]
            tokens += self._tokens[start + gold]
            if example.choices:
                lengths = [len(answer.encode()) for answer in example.choices]
                several += 1
                right += int(np.argmin(nats[start:end])) == gold
                right_by_length += int(np.argmin(nats[start:end] / lengths)) == gold
            start = end
        if not several:
            return Score(float(total / tokens), None, None)
        return Score(
            float(total / tokens), Proportion(right, several), Proportion(right_by_length, several)
        )


@functools.partial(jax.jit, static_argnames="graphdef")
def _nats(graphdef: nnx.GraphDef, params: Any, frozen: Any, batch: Any) -> jax.Array:
    model = merge(graphdef, params, frozen)
    nats = nats_of(model, features(model, batch), batch)
    return jnp.sum(nats * batch["weights"], axis=1)


def _variants(example: Example) -> list[Example]:
    """The example with each of its answers; where there is only one, itself."""
    if not example.choices:
        return [example]
    before = tuple(Part(part.text, False) for part in example.parts[:-1])
    return [
        Example((*before, Part(answer, True)), example.choices, ends=False)
        for answer in example.choices
    ]


def spread(examples: Sequence[Example], count: int | None) -> list[Example]:
    """That many examples, spread evenly over all; None is all."""
    if count is None or count >= len(examples):
        return list(examples)
    return [examples[i] for i in np.linspace(0, len(examples) - 1, count).round().astype(int)]
