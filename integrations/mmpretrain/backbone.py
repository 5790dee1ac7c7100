"""HCast: the network without its heads, as an mmpretrain backbone."""

from collections.abc import Mapping, Sequence

from mmengine.model import BaseModule
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from hcast_zoo.network.config import NUM_STAGES
from hcast_zoo.network.embedding import fit_position
from hcast_zoo.network.model import HCast as CoreHCast
from hcast_zoo.network.model import HCastOutput

from .config import model_config


@MODELS.register_module()
class HCast(CoreHCast, BaseBackbone):
    """H-CAST backbone: superpixel tokens through four stages, each on a coarser segmentation.

    Its parameters are those of :class:`hcast_zoo.HCast` without ``heads``, with the same names.

    Args:
        arch: ``"tiny"``, ``"small"``, ``"small_deep"`` or ``"base"``; the name or file of weights, for their
            architecture (``init_cfg`` or ``load_from`` loads the tensors); or a dict of fields of
            :class:`hcast_zoo.HCastConfig`.
        img_size: Image side in pixels that the position embedding is made for. None here and below: as in ``arch``.
        in_channels: Channels of the images.
        num_superpixels: Tokens entering stage 1.
        num_clusters: Clusters made after each stage.
        superpixels: How maps are made if none come with the images: ``"seeds"``, ``"slic"`` or ``"grid"``.
        drop_path_rate: Stochastic depth of the last block; grows linearly from 0.
        mean: Channel means that the images were normalised with, for pixels in [0, 1].
        std: Channel standard deviations.
        out_indices: Stages whose class token is returned, from 0 to 3; negative ones count from the end.
        frozen_stages: -1 freezes nothing; 0 the stem and the embeddings; n also the first n stages; 4 everything.
        init_cfg: mmengine's initialisation. Without it, parameters are initialised as in the paper's code.

    Raises:
        ValueError: if the architecture is unknown, or an argument is out of range.
    """

    def __init__(
        self,
        arch: str | Mapping = "small",
        img_size: int | None = None,
        in_channels: int | None = None,
        num_superpixels: int | None = None,
        num_clusters: Sequence[int] | None = None,
        superpixels: str | None = None,
        drop_path_rate: float | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        init_cfg: dict | list | None = None,
    ):
        config = model_config(
            arch,
            image_size=img_size,
            in_chans=in_channels,
            num_superpixels=num_superpixels,
            num_clusters=_tuple(num_clusters),
            superpixels=superpixels,
            drop_path_rate=drop_path_rate,
            mean=_tuple(mean),
            std=_tuple(std),
        )
        out_indices = _check_stages(out_indices)
        if not -1 <= frozen_stages <= NUM_STAGES:
            raise ValueError(f"frozen_stages: expected -1 to {NUM_STAGES}, got {frozen_stages}")

        # One feature per stage. The head handles the levels of a taxonomy, so the heads made here are removed.
        super().__init__(config.replace(level_classes=(1,) * NUM_STAGES, head_stages=(1, 2, 3, 4)))
        self.heads = nn.ModuleList()
        self.init_cfg = init_cfg
        self.out_indices, self.frozen_stages = out_indices, frozen_stages
        self.register_load_state_dict_pre_hook(_resample_position)
        self._freeze()

    def init_weights(self) -> None:
        """Initialise the parameters (called by the core's constructor), or apply ``init_cfg`` (called by mmengine)."""
        if len(self.heads):  # still there, so this is the constructor
            CoreHCast.init_weights(self)
        else:
            BaseModule.init_weights(self)

    def forward(self, x: Tensor, segments: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the (B, C) class token of each stage in ``out_indices``; stage 4's is normalised.

        Args:
            x: (B, in_channels, H, W) float, normalised.
            segments: (B, H, W) integer superpixel maps; made here if not given.
        """
        return self.select(self.forward_stages(x, segments))

    def forward_stages(self, x: Tensor, segments: Tensor | None = None) -> HCastOutput:
        """Return the core's output, which also has the segmentation of each stage, but no logits."""
        return super().forward(x, segments)

    def select(self, output: HCastOutput) -> tuple[Tensor, ...]:
        """Return the features of ``out_indices``."""
        return tuple(output.level_features[i] for i in self.out_indices)

    def train(self, mode: bool = True) -> "HCast":
        """Set the mode; frozen stages stay in evaluation mode. Returns self (mmpretrain's base returns None)."""
        super().train(mode)
        self._freeze()
        return self

    def get_layer_depth(self, param_name: str, prefix: str = "") -> tuple[int, int]:
        """Return the depth of a parameter, and the number of depths, for layer-wise learning rate decay.

        The stem and the embeddings have depth 0, blocks count up from 1, a pooling has the depth of the block before
        it, and everything after the blocks has the last.
        """
        depths = self.config.depths
        count = sum(depths) + 2
        if not param_name.startswith(prefix):
            return count - 1, count  # the head
        parts = param_name[len(prefix) :].split(".")
        if parts[0] in ("cls_token", "pos_embed", "stem"):
            return 0, count
        if parts[0] == "stages":
            stage = int(parts[1])
            block = int(parts[3]) if parts[2] == "blocks" else depths[stage] - 1
            return sum(depths[:stage]) + block + 1, count

        return count - 1, count

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        self.cls_token.requires_grad_(False)
        self.pos_embed.requires_grad_(False)
        frozen = [self.stem, *self.stages[: self.frozen_stages]]
        if self.frozen_stages == NUM_STAGES:
            frozen.append(self.norm)
        for module in frozen:
            module.requires_grad_(False)
            module.eval()


def _resample_position(module: HCast, state_dict: dict, prefix: str, *_) -> None:
    """Fit the position embedding of a checkpoint made for another image size."""
    fit_position(state_dict, module.config.grid_size, prefix)


def _check_stages(out_indices: int | Sequence[int]) -> tuple[int, ...]:
    stages = (out_indices,) if isinstance(out_indices, int) else tuple(out_indices)
    if not stages or any(type(stage) is not int or not -NUM_STAGES <= stage < NUM_STAGES for stage in stages):
        raise ValueError(f"out_indices: expected stages from 0 to {NUM_STAGES - 1}, got {out_indices!r}")
    return tuple(stage % NUM_STAGES for stage in stages)


def _tuple(values: Sequence | None) -> tuple | None:
    return None if values is None else tuple(values)
