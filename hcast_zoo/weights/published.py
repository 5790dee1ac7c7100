"""Weights that others publish, by name; this module has no slow imports."""

import dataclasses

MIT_CODE = "MIT (of the authors' code; the Hub repository's own licence was not seen)"


@dataclasses.dataclass(frozen=True)
class Tag:
    """Weights that others publish.

    Attributes:
        name: Name of the form ``variant.tag``.
        repo: Repository on the Hub.
        path: File in it.
        data: Training data.
        classes: Number of classes of the head; 0 for weights without a head.
        license: Licence of the file, as far as it is known.
        reported: Accuracy that its authors report.
        parameters: Number of parameters of the converted model.
        sha256: SHA-256 of the file; None if its authors published none.
    """

    name: str
    repo: str
    path: str
    data: str
    classes: int
    license: str
    reported: str
    parameters: int
    sha256: str | None = None

    @property
    def variant(self) -> str:
        """Name of the architecture."""
        return self.name.partition(".")[0]

    @property
    def address(self) -> str:
        """Address of the file, as ``hcast-zoo convert`` takes it."""
        return f"hf://{self.repo}/{self.path}"


def _moco(variant: str, reported: str, parameters: int) -> Tag:
    path = f"snapshots/moco/imagenet1k/{variant.replace('hcast', 'cast')}/checkpoint_0099.pth.tar"
    data = "ImageNet-1k without labels (MoCo v3)"
    return Tag(
        name=f"{variant}.cast_moco_in1k",
        repo="twke/CAST",
        path=path,
        data=data,
        classes=0,
        license=MIT_CODE,
        reported=reported,
        parameters=parameters,
    )


_PUBLISHED = (
    Tag(
        name="hcast_small.cast_in1k",
        repo="twke/CAST",
        path="snapshots/deit/imagenet1k/cast_small/best_checkpoint.pth",
        data="ImageNet-1k",
        classes=1000,
        license=MIT_CODE,
        reported="80.4 % top-1",
        parameters=26_561_944,
    ),
    _moco("hcast_small", "68.1 % top-1 by linear probe", 26_176_944),
    _moco("hcast_small_deep", "69.1 % top-1 by linear probe", 33_274_800),
    _moco("hcast_base", "72.4 % top-1 by linear probe", 103_935_840),
)
TAGS: dict[str, Tag] = {tag.name: tag for tag in _PUBLISHED}
