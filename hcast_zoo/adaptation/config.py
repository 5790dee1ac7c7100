"""AdaptConfig: how far test-time adaptation may go, as frozen plain data."""

import dataclasses
import math

MAX_STEPS = 1000  # a mistyped number would run for days
FREE = ("tokens", "pooling", "norms")


@dataclasses.dataclass(frozen=True)
class AdaptConfig:
    """How far adaptation may go.

    Args:
        free: Kinds of tensors that may change, each within its own trust region. ``tokens``: the features of the
            superpixels that enter stage 1 (not the class token, through which an answer could bypass the segments).
            ``pooling``: the weights that decide which cluster a token is in. ``norms``: scales and shifts of the layer
            norms in the stages.
        steps: Steps of normalised gradient descent.
        step_size: Length of a step, as a fraction of the tensors' norm.
        radius: Radius of the trust region: how far all steps together may move, as a fraction of the same norm.
        contrast: Keep a step only if it also raises the colour contrast of the segments; else halve it and try again.
            Segments then fit objects better on average, whatever the label (docs/mending.md).

    Raises:
        ValueError: if a field is out of range.
    """

    free: tuple[str, ...] = ("tokens",)
    steps: int = 5
    step_size: float = 0.05
    radius: float = 0.2
    contrast: bool = False

    def __post_init__(self):
        object.__setattr__(self, "free", tuple(self.free))
        if not self.free or not set(self.free) <= set(FREE) or len(set(self.free)) < len(self.free):
            raise ValueError(f"free: expected some of {', '.join(FREE)}, each once, got {self.free!r}")
        if type(self.steps) is not int or not 1 <= self.steps <= MAX_STEPS:
            raise ValueError(f"steps: expected an integer from 1 to {MAX_STEPS}, got {self.steps!r}")
        for field in ("step_size", "radius"):
            if not 0 < getattr(self, field) < math.inf:
                raise ValueError(f"{field}: expected a positive number, got {getattr(self, field)!r}")
