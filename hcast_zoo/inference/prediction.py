"""The answer for one picture, as plain data."""

import dataclasses

from ..data.boxes import Box
from .sets import NodeSet


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The answer for one picture.

    Attributes:
        file: The file as it was given; ``picture`` for a picture without a name.
        path: Node names, coarse to fine; empty if there is an error. With back-off it may end early, or be empty.
        probabilities: Probability in [0, 1] that each level by itself gives its node of the path.
        path_probability: Probability of the path, in [0, 1]; 1 if the path is empty. See
            :func:`hcast_zoo.taxonomy.decode.decode`.
        runner_up: The second-best path, to its end.
        runner_up_probability: Its probability, in [0, 1].
        error: Why there is no answer, or None.
        reason: With back-off, why the path ends where it does; otherwise None.
        top: On request, the most probable paths, each with its probability in [0, 1].
        node_set: On request, a set of nodes that contains the true one as often as promised.
        box: Box of the part of the file that was labelled; None for the whole picture.
        group: Group of the picture, if the pictures of a group were answered together.
        group_size: Number of pictures in the group.
    """

    file: str
    path: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    path_probability: float = 0.0
    runner_up: tuple[str, ...] = ()
    runner_up_probability: float = 0.0
    error: str | None = None
    reason: str | None = None
    top: tuple[tuple[tuple[str, ...], float], ...] = ()
    node_set: NodeSet | None = None
    box: Box | None = None
    group: str | None = None
    group_size: int | None = None

    def to_dict(self) -> dict:
        """Return plain data for JSON: ``file``, ``box`` and ``error`` of a failure, or all that was asked for."""
        if self.error is not None:
            box = {} if self.box is None else {"box": self.box.to_dict()}
            return {"file": self.file, **box, "error": self.error}

        data = dataclasses.asdict(self)
        del data["error"], data["node_set"], data["box"]
        if self.group is None:
            del data["group"], data["group_size"]
        if self.box is not None:
            data["box"] = self.box.to_dict()
        if self.reason is None:
            del data["reason"]
        for key in ("path", "probabilities", "runner_up"):
            data[key] = list(data[key])
        data["top"] = [{"path": list(path), "probability": probability} for path, probability in self.top]
        if not self.top:
            del data["top"]
        if self.node_set is not None:
            data["set"] = self.node_set.to_dict()

        return data
