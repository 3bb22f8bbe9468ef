"""How many steps fit: the largest count whose epsilon stays within a budget."""

from collections.abc import Callable

MOST_STEPS = 2**31  # nobody trains longer, and no search goes further


def most_steps(epsilon_after: Callable[[int], float], budget: float, guess: int = 1) -> int:
    """The largest k in 0..MOST_STEPS with epsilon_after(k) <= budget; 0 if there is none.

    Guarantees:
        Where k > 0 is returned, epsilon_after(k) was asked and is within the budget; where
        k < MOST_STEPS, epsilon_after(k + 1) was asked and is not. Nothing is assumed of the
        counts between but that epsilon does not fall as steps are added.

    Each question may take a second, so the next one is where the secant through the two
    nearest answers meets the budget; every third halves the bracket.

    Args:
        epsilon_after: k >= 1 to the epsilon of k more steps.
        budget: finite.
        guess: where to look first; >= 1.
    """
    low, below = 0, 0.0
    high, above = 0, 0.0  # a high of 0: none found yet
    at, stride = min(guess, MOST_STEPS), 1.0
    for asked in range(1, 1000):
        value = epsilon_after(at)
        if value <= budget:
            low, below = at, value
        else:
            high, above = at, value
        if low == MOST_STEPS or high - low == 1:
            return low
        if high == 0:
            # Epsilon grows like a power between 1/2 and 1 of the steps: with the square of the
            # ratio, a bracket is found at once or nearly so.
            reach = (budget / below) ** 2 if below > 0 else 2.0
            stride *= 1.3
            at = min(MOST_STEPS, max(low + 1, int(low * min(max(reach, stride), 64.0))))
        elif asked % 3 == 0 or low == 0:
            at = (low + high) // 2
        else:
            at = low + int((high - low) * (budget - below) / (above - below))
            at = min(max(at, low + 1), high - 1)
    raise AssertionError("a bracket of whole numbers was halved for ever")
