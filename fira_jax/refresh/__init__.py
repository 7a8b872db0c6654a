"""When a subspace is replaced: one file for each rule, all behind :class:`Rule`."""

from fira_jax.checks import require_choice
from fira_jax.completion import completed
from fira_jax.refresh.displacement import Displacement as Displacement
from fira_jax.refresh.lazy import Lazy as Lazy
from fira_jax.refresh.norm_decay import NormDecay as NormDecay
from fira_jax.refresh.protocol import Rule as Rule
from fira_jax.refresh.scheduled import FIXED, STAGGERED, Schedule
from fira_jax.refresh.scheduled import Scheduled as Scheduled

_NAMED: dict[str, Rule] = {"fixed": FIXED, "staggered": STAGGERED, "lazy": Lazy()}


def resolve(rule: str | Schedule | Rule) -> Rule:
    """The rule with this name, or that a callable schedule stands for, or the rule itself.

    Args:
      rule: ``"fixed"``, ``"staggered"``, ``"lazy"``, a callable as :class:`Scheduled` takes it, or
        a :class:`Rule`.

    Raises:
      ValueError: unknown name.
      TypeError: none of these.

    Example:
      >>> import fira_jax
      >>> fira_jax.refresh.resolve("lazy")
      Lazy(threshold=0.4, queue=5, factor=2)
    """
    if isinstance(rule, str):
        require_choice("refresh", rule, _NAMED)
        return _NAMED[rule]
    whole = None if isinstance(rule, type) else completed(rule, Rule)
    if whole is None and callable(rule) and not isinstance(rule, type):
        whole = Scheduled(rule)
    if whole is None:
        raise TypeError(
            f"refresh must be a name, a callable or a fira_jax.refresh.Rule, got {rule!r}"
        )
    return whole
