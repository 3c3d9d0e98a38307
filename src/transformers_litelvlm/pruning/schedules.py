"""How many tokens each layer takes away, so that a budget is met exactly."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache


def capped_schedule(schedule: Sequence[int], num_tokens: int) -> list[int]:
    """What the layers of a schedule take away of `num_tokens`, if each takes half of what remains at most."""
    taken = []
    for wanted in schedule:
        taken.append(min(wanted, num_tokens // 2))
        num_tokens -= taken[-1]
    return taken


@lru_cache
def even_schedule(num_tokens: int, budget: int, num_layers: int) -> tuple[int, ...]:
    """The most even schedule that keeps `budget` tokens, if a layer takes half of what remains at most.

    Earlier layers take the remainder; if the cap is reached, other layers take more.

    Raises:
        ValueError: if so many layers cannot get down to the budget; the message says how far they can.
    """
    fewest = num_tokens - sum(capped_schedule([num_tokens] * num_layers, num_tokens))
    if budget < fewest:
        raise ValueError(
            f"`budget` {budget} of {num_tokens} visual tokens is not reachable in {num_layers} layers that each take "
            f"away half of their tokens at most: {fewest} to {num_tokens} are."
        )
    each, layer = divmod(num_tokens - budget, num_layers)
    wanted = [each + (index < layer) for index in range(num_layers)]
    # One more in one more layer takes one token more away or, if the cap is reached, none.
    while num_tokens - sum(capped_schedule(wanted, num_tokens)) > budget:
        wanted[layer % num_layers] += 1
        layer += 1
    return tuple(capped_schedule(wanted, num_tokens))


def checked_schedule(schedule: Sequence[int], num_tokens: int, budget: int, num_layers: int) -> tuple[int, ...]:
    """What the layers really take away by a schedule of the user, zero in layers that it does not name.

    Raises:
        ValueError: if the schedule does not leave `budget` tokens, or names more layers than there are.
    """
    given = capped_schedule([*schedule, *[0] * (num_layers - len(schedule))], num_tokens)
    left = num_tokens - sum(given)
    if len(given) != num_layers or left != budget:
        raise ValueError(
            f"`schedule` {list(schedule)} leaves {left} of {num_tokens} visual tokens after {len(given)} layers, but "
            f"`budget` is {budget} and {num_layers} layers make the features."
        )
    return tuple(given)
