"""Learning-rate schedules as functions of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math


def cosine(step: int, total: int, warmup: float = 0.0) -> float:
    """Factor on the learning rate: linear rise over the share `warmup` of `total` steps, then half a
    cosine to 0."""
    rising = int(warmup * total)
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))
