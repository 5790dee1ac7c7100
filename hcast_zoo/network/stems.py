"""Pretrained stems from timm, averages over superpixels by area, and what tokens carry beside their features."""

import dataclasses
import re
from typing import Any

import torch
from torch import Tensor, nn

from .efficientnet import EfficientNetLite0
from .memory import check_config

TIMM = "timm:"
EXPANSION = 6  # of a block's hidden layer, in inverted bottlenecks; 4 in transformers
MAPS_AT_ONCE = 4  # a layer's input and output, its workspace, and one that is kept
DENSE_CELLS = 1024  # of a grid; with more, adding cells up is faster than a matrix product
EARLY_STRIDES = (2, 4)  # of the feature maps that still follow the edges of objects
# What grouping compares, and the weight of each part; tuned on 80 drawings over photographs that recipes/in1k trains
# on. Its model card has the IoU on other pictures.
COLOUR_WEIGHT, EARLY_WEIGHT, PLACE_WEIGHT = 1.0, 0.5, 0.8
CHROMA = 2.0  # weight of red against green, and of both against blue, beside brightness
NEEDS_TIMM = "this model's stem is a timm model: pip install timm"


@dataclasses.dataclass
class SuperpixelMeans:
    """A stem's features of each of N superpixels, before any trained layer; those of a frozen stem can be cached.

    Attributes:
        features: (B, N, F) averages of the stem's features.
        descriptor: (B, N, D) low-level averages that grouping compares, or None where it compares tokens.
        area: (B, N) number of pixels.
    """

    features: Tensor
    descriptor: Tensor | None
    area: Tensor

    def __getitem__(self, chosen) -> "SuperpixelMeans":
        """Return a part of the batch."""
        descriptor = None if self.descriptor is None else self.descriptor[chosen]
        return SuperpixelMeans(self.features[chosen], descriptor, self.area[chosen])

    def to(self, *args, **kwargs) -> "SuperpixelMeans":
        """Return the same on another device or in another dtype, as :meth:`torch.Tensor.to` does."""
        descriptor = None if self.descriptor is None else self.descriptor.to(*args, **kwargs)
        return SuperpixelMeans(self.features.to(*args, **kwargs), descriptor, self.area.to(*args, **kwargs))


@dataclasses.dataclass
class Carried:
    """What tokens carry through pooling beside their features.

    Attributes:
        area: (B, N) number of pixels; soft assignment divides it.
        descriptor: (B, N, D) that grouping compares, or None where it compares tokens.
        evidence: (B, N, C) what each token says of the label, or None; a stage's class token starts from its mean.
    """

    area: Tensor
    descriptor: Tensor | None = None
    evidence: Tensor | None = None

    def seed(self) -> Tensor | None:
        """Return the (B, 1, C) mean of the tokens' evidence by area, or None without evidence."""
        return None if self.evidence is None else weighted_mean(self.evidence, self.area)

    def pool(self, assignment: Tensor) -> "Carried":
        """Return what M clusters carry: averages by area and (B, N, M) assignment."""
        shares = (assignment * self.area[..., None]).transpose(1, 2)  # [B, M, N]
        area = shares.sum(-1)
        shares = shares / area.clamp(min=1e-6)[..., None]

        return Carried(
            area=area,
            descriptor=None if self.descriptor is None else shares @ self.descriptor,
            evidence=None if self.evidence is None else shares @ self.evidence,
        )


class PretrainedStem(nn.Module):
    """A timm model whose features, averaged over superpixels, become tokens and evidence.

    ``Linear`` and ``LayerNorm`` make a token of a superpixel's standardised features; another ``Linear`` its evidence.
    Averaging comes first, which is the same for a linear layer and lets the averages of a frozen stem be cached.

    Args:
        config: Fields ``stem``, ``stem_strides``, ``stem_final``, ``image_size``, ``in_chans`` and ``embed_dim``.
        device: Device of the parameters.
        dtype: Floating-point type of the parameters.

    Raises:
        ImportError: if timm is needed and not installed.
        ValueError: if timm has no such model, or it lacks feature maps of these strides.
        MemoryBudgetError: if the model and one picture would take more memory than the budget.
    """

    def __init__(self, config: Any, device=None, dtype=None):
        super().__init__()
        self.frozen = False
        self.final = config.stem_final
        self.body = create_body(config, device, dtype)
        info = [(entry["reduction"], entry["num_chs"]) for entry in self.body.feature_info]
        index_of = {stride: index for index, (stride, _) in enumerate(info)}  # the last one of each stride, as in timm

        if missing := [stride for stride in config.stem_strides if stride not in index_of]:
            raise ValueError(
                f"stem_strides: {config.stem} has feature maps of strides {sorted(index_of)}, not "
                f"{', '.join(map(str, missing))}"
            )

        self.indices = [index_of[stride] for stride in config.stem_strides]
        self.early_indices = [index_of[stride] for stride in EARLY_STRIDES if stride in index_of]
        dim = sum(info[index][1] for index in self.indices)
        if self.final:
            dim += getattr(self.body, "head_hidden_size", self.body.num_features)

        dd = {"device": device, "dtype": dtype}
        self.register_buffer("feature_mean", torch.zeros(dim, **dd))
        self.register_buffer("feature_std", torch.ones(dim, **dd))
        self.proj = nn.Linear(dim, config.embed_dim, **dd)
        self.norm = nn.LayerNorm(config.embed_dim, **dd)
        self.evidence = nn.Linear(dim, config.embed_dim, **dd)

    def maps(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return (B, C, h, w) feature maps: those that tokens are made of, and the early ones.

        Raises:
            ValueError: if the stem refuses the size of the images.
        """
        indices = sorted({*self.indices, *self.early_indices})
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            try:
                # The channels-last layout makes convolutions faster, as in the paper's stem.
                images = images.contiguous(memory_format=torch.channels_last)
                features = self.body.forward_intermediates(
                    images, indices=indices, intermediates_only=not self.final, output_fmt="NCHW"
                )
            except (AssertionError, RuntimeError) as error:
                size = tuple(images.shape[2:])
                raise ValueError(
                    f"the stem {type(self.body).__name__} cannot take pictures of {size}: {error}"
                ) from error

        final, intermediates = features if self.final else (None, features)
        by_index = dict(zip(indices, intermediates))
        maps = [by_index[index] for index in self.indices]
        if final is not None:
            maps.append(final)
        return maps, [by_index[index] for index in self.early_indices]

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Turn (B, N, F) averages into (B, N, C) tokens and (B, N, C) evidence."""
        features = (features - self.feature_mean) / self.feature_std
        return self.norm(self.proj(features)), self.evidence(features)

    @torch.no_grad()
    def fit_statistics(self, features: Tensor, valid: Tensor) -> None:
        """Set the mean and deviation of each channel from (B, N, F) averages, where (B, N) bool ``valid`` is True."""
        rows = features[valid].double()
        self.feature_mean.copy_(rows.mean(0))
        self.feature_std.copy_(rows.std(0).clamp(min=1e-3))

    def freeze(self) -> None:
        """Leave the pretrained part unchanged by training: no gradients, and batch norms in evaluation mode."""
        self.frozen = True
        self.body.requires_grad_(False)
        self.body.eval()

    def train(self, mode: bool = True) -> "PretrainedStem":
        """Set the mode; a frozen pretrained part stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.body.eval()
        return self

    def init_weights(self) -> None:
        """Initialise the layers on top; timm has initialised the pretrained part."""
        for layer in (self.proj, self.evidence, self.norm):
            layer.reset_parameters()


def create_body(config: Any, device=None, dtype=None) -> nn.Module:
    """Return the timm model of a config's stem, without classifier and without pretrained weights.

    EfficientNet-Lite0, of the packaged weights, is made without timm, whose import takes seconds.

    Raises:
        ImportError: if timm is needed and not installed.
        ValueError: if timm has no such model, or it has no feature maps.
        MemoryBudgetError: if the model and one picture would take more memory than the budget.
    """
    device = torch.device(device or torch.get_default_device())
    sketch = _create_on(torch.device("meta"), config)
    size = _picture_bytes(sketch, config)
    if device.type == "meta":
        check_config(config, stem=size)
        body = sketch
    else:
        check_config(config, stem=size + _bytes(sketch))
        body = _create_on(device, config)

    return body if dtype is None else body.to(dtype)


def _create_on(device: torch.device, config: Any) -> nn.Module:
    name, image_size = config.stem.removeprefix(TIMM), config.image_size
    if name == "efficientnet_lite0":
        with device:
            return EfficientNetLite0(config.in_chans)

    try:
        import timm
    except ImportError as error:
        raise ImportError(NEEDS_TIMM) from error

    if not timm.is_model(name):
        near = timm.list_models(f"*{re.split('[._]', name)[0]}*")[:3]
        hint = f": did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"stem: timm {timm.__version__} has no model {name!r}{hint}")

    pretrained_cfg = timm.models.get_pretrained_cfg(name)
    options = {"img_size": image_size} if pretrained_cfg is not None and pretrained_cfg.fixed_input_size else {}
    try:
        with device:
            body = timm.create_model(name, num_classes=0, in_chans=config.in_chans, **options)
    except (AssertionError, TypeError) as error:
        raise ValueError(f"stem: timm's {name} cannot be made for pictures of {image_size} pixels: {error}") from error

    if not hasattr(body, "forward_intermediates") or not hasattr(body, "feature_info"):
        raise ValueError(f"stem: timm's {name} has no feature maps (forward_intermediates): choose another model")
    return body


def _bytes(model: nn.Module) -> int:
    """Return the bytes of a model's parameters and buffers as float32."""
    return 4 * sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))


def _picture_bytes(body: nn.Module, config: Any) -> int:
    """Return the bytes that one picture takes in a timm model: a few of its largest maps, and wide blocks."""
    values = max(entry["num_chs"] / entry["reduction"] ** 2 for entry in body.feature_info)  # per pixel
    return int(4 * values * EXPANSION * MAPS_AT_ONCE * config.image_size**2)


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Return the (B, 1, C) mean of (B, N, C) values by (B, N) weights."""
    share = weight / weight.sum(1, keepdim=True).clamp(min=1e-6)
    return share[:, None].to(values.dtype) @ values


def cell_shares(segments: Tensor, grid: tuple[int, int], num_superpixels: int) -> Tensor:
    """Return the (B, N, h * w) number of pixels of each superpixel in each cell of a grid over the picture.

    Args:
        segments: (B, H, W) int64 superpixels.
        grid: h and w.
        num_superpixels: N.
    """
    batch, height, width = segments.shape
    rows = torch.arange(height, device=segments.device) * grid[0] // height
    columns = torch.arange(width, device=segments.device) * grid[1] // width
    cells = grid[0] * grid[1]
    index = (segments * cells + rows[:, None] * grid[1] + columns).flatten(1)  # [B, HW]
    counts = torch.zeros(batch, num_superpixels * cells, device=segments.device)
    return counts.scatter_add(1, index, torch.ones_like(index, dtype=counts.dtype)).view(batch, num_superpixels, cells)


def cell_sums(features: Tensor, segments: Tensor, num_superpixels: int) -> Tensor:
    """Add up features over superpixels; each pixel counts, with the features of its cell.

    Args:
        features: (B, C, h, w), where h divides H, and w divides W.
        segments: (B, H, W) int64 superpixels.
        num_superpixels: N.

    Returns:
        (B, N, C) sums, at least in float32.
    """
    batch, channels, height, width = features.shape
    rows = features.permute(0, 2, 3, 1).reshape(-1, channels)
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    first = num_superpixels * torch.arange(batch, device=segments.device)[:, None, None]
    down, across = segments.shape[1] // height, segments.shape[2] // width

    sums = rows.new_zeros(batch * num_superpixels, channels)
    for y in range(down):
        for x in range(across):  # one pixel of each cell
            index = (segments[:, y::down, x::across] + first).reshape(-1, 1)
            sums = sums.scatter_add(0, index.expand(-1, channels), rows)

    return sums.view(batch, num_superpixels, channels)


def area_means(maps: list[Tensor], segments: Tensor, num_superpixels: int) -> tuple[Tensor, Tensor]:
    """Average feature maps over superpixels by area: each pixel counts, with the features of its cell.

    Args:
        maps: (B, C, h, w) each.
        segments: (B, H, W) int64 superpixels.
        num_superpixels: N.

    Returns:
        (B, N, sum of C) averages, 0 for superpixels without pixels; and (B, N) numbers of pixels.
    """
    area = cell_shares(segments, (1, 1), num_superpixels)[..., 0]
    pixels = area.clamp(min=1)[..., None]
    shares: dict[tuple[int, int], Tensor] = {}
    means = []
    for features in maps:
        height, width = grid = (features.shape[2], features.shape[3])
        if height * width > DENSE_CELLS and segments.shape[1] % height == 0 and segments.shape[2] % width == 0:
            means.append((cell_sums(features, segments, num_superpixels) / pixels).to(features.dtype))
            continue

        if grid not in shares:
            shares[grid] = cell_shares(segments, grid, num_superpixels) / pixels
        means.append(shares[grid].to(features.dtype) @ features.flatten(2).transpose(1, 2))

    return torch.cat(means, -1), area


def describe(images: Tensor, early: list[Tensor], segments: Tensor, num_superpixels: int) -> Tensor:
    """Describe superpixels by low-level cues: their colours, early features, and where they are.

    Each part is centred on the picture's mean and scaled to a mean square of its weight over the picture, so that a
    cosine compares deviations. Gradients stop here: grouping does not train the stem.

    Args:
        images: (B, C, H, W) normalised.
        early: (B, C, h, w) maps of the stem's first layers.
        segments: (B, H, W) int64 superpixels.
        num_superpixels: N.

    Returns:
        (B, N, D) float.
    """
    with torch.no_grad():
        maps = [images, *early, pixel_places(images)]
        means, area = area_means(maps, segments, num_superpixels)
        colours, *features, places = means.split([part.shape[1] for part in maps], -1)

        parts = [(opponent_colours(colours), COLOUR_WEIGHT), *((part, EARLY_WEIGHT) for part in features)]
        parts.append((places, PLACE_WEIGHT))
        valid = (area > 0)[..., None]
        scaled = []
        for part, weight in parts:
            centred = torch.where(valid, part - weighted_mean(part, area), 0.0)
            power = weighted_mean(centred.square().sum(-1, keepdim=True), area)
            scaled.append(weight * centred / power.clamp(min=1e-6).sqrt())

        return torch.cat(scaled, -1)


def opponent_colours(colours: Tensor) -> Tensor:
    """Return brightness, red against green and yellow against blue of (..., 3) colours; other channels stay."""
    if colours.shape[-1] != 3:
        return colours
    red, green, blue = colours.unbind(-1)
    brightness = (red + green + blue) / 3
    return torch.stack([brightness, CHROMA * (red - green) / 2, CHROMA * ((red + green) / 4 - blue / 2)], -1)


def pixel_places(images: Tensor) -> Tensor:
    """Return (B, 2, H, W): row and column of each pixel, from -1 to 1."""
    batch, _, height, width = images.shape
    rows = torch.linspace(-1, 1, height, device=images.device, dtype=images.dtype)[:, None].expand(-1, width)
    columns = torch.linspace(-1, 1, width, device=images.device, dtype=images.dtype)[None].expand(height, -1)
    return torch.stack([rows, columns]).expand(batch, -1, -1, -1)
