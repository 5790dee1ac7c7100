"""EfficientNet-Lite0, the stem of the packaged photograph weights, without timm.

timm imports torchvision, which imports torch's compiler, and that takes half of the time of classifying one picture. So
this one stem is written here, with the names, shapes and values of
``timm.create_model("efficientnet_lite0", num_classes=0)``.

Source: Tan and Le, "EfficientNet", ICML 2019, Table 1, with the Lite changes (ReLU6, no squeeze-and-excitation, fixed
stem and head): https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

STEM, HEAD = 32, 1280  # channels
STAGES = (  # depth, kernel size, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class BatchNormReLU6(nn.BatchNorm2d):
    """Batch norm, then ReLU6, in one module: a second one would change the names of tensors."""

    def forward(self, input: Tensor) -> Tensor:
        return F.relu6(super().forward(input), inplace=True)


class MBConv(nn.Sequential):
    """Inverted bottleneck: 1x1 expansion (none if the factor is 1), depthwise convolution, 1x1 projection."""

    def __init__(self, dim: int, kernel_size: int, stride: int, expansion: int, out_dim: int):
        hidden = dim * expansion
        layers: list[tuple[str, nn.Module]] = []
        if expansion > 1:
            layers += [("conv_pw", conv(dim, hidden)), ("bn1", BatchNormReLU6(hidden))]

        depthwise, project = ("bn2", "bn3") if expansion > 1 else ("bn1", "bn2")
        layers += [("conv_dw", conv(hidden, hidden, kernel_size, stride, groups=hidden))]
        layers += [(depthwise, BatchNormReLU6(hidden))]
        layers += [("conv_pwl" if expansion > 1 else "conv_pw", conv(hidden, out_dim))]
        layers += [(project, nn.BatchNorm2d(out_dim))]
        super().__init__(OrderedDict(layers))
        self.has_skip = stride == 1 and dim == out_dim

    def forward(self, x: Tensor) -> Tensor:
        residual = super().forward(x)
        return residual + x if self.has_skip else residual


class EfficientNetLite0(nn.Module):
    """Feature maps of EfficientNet-Lite0, with the part of timm's interface that a stem uses.

    Args:
        in_chans: Channels of the images.
    """

    num_features = head_hidden_size = HEAD

    def __init__(self, in_chans: int = 3):
        super().__init__()
        self.conv_stem = conv(in_chans, STEM, 3, stride=2)
        self.bn1 = BatchNormReLU6(STEM)
        self.blocks = nn.Sequential()

        last_stages: dict[int, dict[str, int]] = {}  # the last one of each stride
        dim, reduction = STEM, 2
        for stage, (depth, kernel_size, stride, expansion, out_dim) in enumerate(STAGES, start=1):
            reduction *= stride
            last_stages[reduction] = {"stage": stage, "reduction": reduction, "num_chs": out_dim}

            blocks = nn.Sequential()
            for _ in range(depth):
                blocks.append(MBConv(dim, kernel_size, stride, expansion, out_dim))
                dim, stride = out_dim, 1
            self.blocks.append(blocks)

        self.feature_info = list(last_stages.values())
        self.conv_head = conv(dim, HEAD)
        self.bn2 = BatchNormReLU6(HEAD)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw the weights of convolutions as EfficientNet's authors do: normal, scaled by the fan-out of a group."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:  # drawing there imports torch's compiler
                height, width = module.kernel_size
                fan_out = height * width * module.out_channels // module.groups
                nn.init.normal_(module.weight, 0, (2 / fan_out) ** 0.5)

    def forward_intermediates(
        self, x: Tensor, indices: Sequence[int], intermediates_only: bool = False, output_fmt: str = "NCHW"
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return feature maps as timm's models do.

        Args:
            x: (B, in_chans, H, W) float images.
            indices: Which entries of ``feature_info``.
            intermediates_only: Return only their maps.
            output_fmt: For timm's signature; always ``"NCHW"`` here.

        Returns:
            The (B, C, h, w) maps; unless ``intermediates_only``, the final (B, 1280, h, w) features and those maps.
        """
        stages = {self.feature_info[index]["stage"] for index in indices}
        maps = []
        x = self.bn1(self.conv_stem(x))
        for stage, block in enumerate(self.blocks, start=1):
            x = block(x)
            if stage in stages:
                maps.append(x)

        return maps if intermediates_only else (self.bn2(self.conv_head(x)), maps)


def conv(dim: int, out_dim: int, kernel_size: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Return a convolution without bias, padded so that only its stride changes the size."""
    return nn.Conv2d(dim, out_dim, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
