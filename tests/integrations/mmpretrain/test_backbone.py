"""The backbone, as mmpretrain tests its own: structure, initialisation, forward, output types, freezing, resizing."""

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmpretrain.engine.optimizers import LearningRateDecayOptimWrapperConstructor
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from mmpretrain.registry import MODELS
from torch import nn

from hcast_zoo import VARIANTS
from hcast_zoo.integrations.mmpretrain.backbone import HCast
from hcast_zoo.integrations.mmpretrain.config import model_config
from hcast_zoo.network.config import HCastConfig
from hcast_zoo.network.embedding import resample_position
from hcast_zoo.weights.file import load_weights, packaged_weights


@pytest.fixture
def backbone(arch) -> HCast:
    return HCast(arch)


class TestStructure:
    @pytest.mark.parametrize("name", ["tiny", "small", "small_deep", "base"])
    def test_names_are_the_variants(self, name):
        assert model_config(name) == HCastConfig.from_variant(f"hcast_{name}")
        assert f"hcast_{name}" in VARIANTS

    def test_packaged_weights_name_an_architecture(self):
        for name in packaged_weights():
            config = load_weights(name).config
            assert model_config(name, num_superpixels=None) == config

    def test_is_a_backbone_in_the_registry(self, arch):
        built = MODELS.build(dict(type="HCast", arch=arch))
        assert isinstance(built, HCast) and isinstance(built, BaseBackbone)

    @pytest.mark.parametrize(
        "kwargs, error, message",
        [
            (dict(arch="huge"), ValueError, "unknown arch 'huge': expected one of tiny, small"),
            (dict(arch=dict(embed_dims=48)), ValueError, "unknown config keys: embed_dims"),
            (dict(out_indices=(0, 4)), ValueError, "out_indices: expected stages from 0 to 3"),
            (dict(out_indices=()), ValueError, "out_indices"),
            (dict(frozen_stages=5), ValueError, "frozen_stages: expected -1 to 4, got 5"),
            (dict(img_size=100), ValueError, "image_size: expected a multiple of 8"),
            (dict(patch_size=16), TypeError, "patch_size"),
        ],
    )
    def test_wrong_arguments_are_explained(self, kwargs, error, message):
        with pytest.raises(error, match=message):
            HCast(**kwargs)

    def test_arguments_override_the_architecture(self, arch):
        config = HCast(
            arch,
            img_size=64,
            in_channels=1,
            num_superpixels=20,
            num_clusters=[8, 4, 2, 1],
            superpixels="grid",
            drop_path_rate=0.2,
        ).config
        assert (config.image_size, config.in_chans, config.num_superpixels) == (64, 1, 20)
        assert (config.num_clusters, config.superpixels, config.drop_path_rate) == ((8, 4, 2, 1), "grid", 0.2)

    def test_has_the_cores_parameters_without_heads(self, backbone, tiny_model):
        assert set(backbone.state_dict()) == {k for k in tiny_model.state_dict() if not k.startswith("heads.")}


class TestInit:
    def test_draws_as_the_core(self, backbone):
        """Truncated normal of 0.02 in embeddings and blocks, PyTorch's defaults in the stem and poolings."""
        block, pool = backbone.stages[0].blocks[0], backbone.stages[0].pool
        for value in (backbone.pos_embed, block.attn.qkv.weight, block.mlp.fc1.weight):
            assert 0.018 < value.std() < 0.022
        assert not block.mlp.fc1.bias.any() and torch.all(backbone.norm.weight == 1)
        assert pool.fc1[1].weight.std() > 0.05 and pool.fc1[1].bias.any()

    def test_init_weights_without_init_cfg_changes_nothing(self, backbone):
        before = {k: v.clone() for k, v in backbone.state_dict().items()}
        backbone.init_weights()
        assert all(torch.equal(before[k], v) for k, v in backbone.state_dict().items())

    def test_init_cfg_is_applied(self, arch):
        backbone = HCast(arch, init_cfg=[dict(type="Constant", layer="Linear", val=0.5, bias=2.0)])
        backbone.init_weights()
        assert torch.all(backbone.stages[0].blocks[0].mlp.fc1.weight == 0.5)

    def test_pretrained_weights_are_loaded(self, arch, tiny_weights, tiny_model):
        backbone = HCast(arch, init_cfg=dict(type="Pretrained", checkpoint=str(tiny_weights), prefix="backbone."))
        backbone.init_weights()
        assert all(torch.equal(v, tiny_model.state_dict()[k]) for k, v in backbone.state_dict().items())

    def test_position_embedding_of_another_size_is_resampled(self, arch, tiny_weights, tiny_model, images):
        cfg = dict(type="Pretrained", checkpoint=str(tiny_weights), prefix="backbone.")
        backbone = HCast(arch, img_size=48, init_cfg=cfg).eval()
        backbone.init_weights()
        assert backbone.pos_embed.shape == (1, 1 + 6 * 6, 48)
        assert torch.equal(backbone.pos_embed[:, :1], tiny_model.pos_embed[:, :1])
        # as the core does at run time with a picture of that size
        assert torch.allclose(backbone.pos_embed, resample_position(tiny_model.pos_embed, (6, 6)), atol=1e-6)


class TestForward:
    @pytest.mark.parametrize("out_indices", [3, -1, (0, 1, 2, 3), (1, 3), (-2,)])
    def test_returns_a_tuple_of_class_tokens(self, arch, out_indices):
        outputs = HCast(arch, out_indices=out_indices).eval()(torch.randn(2, 3, 32, 32))
        assert type(outputs) is tuple
        assert [o.shape for o in outputs] == [(2, 48)] * (1 if isinstance(out_indices, int) else len(out_indices))

    def test_features_are_the_cores(self, classifier, tiny_model):
        x = torch.randn(2, 3, 32, 32)
        stages = tiny_model.config.head_stages
        features = classifier.backbone(x)
        for level, expected in zip(stages, tiny_model(x).level_features):
            assert torch.equal(features[level - 1], expected)

    def test_given_maps_are_used(self, backbone):
        backbone.eval()
        x = torch.randn(1, 3, 32, 32)
        maps = torch.arange(32)[None, None].expand(1, 32, 32) // 2
        assert not torch.equal(backbone(x)[3], backbone(x, maps)[3])
        with pytest.raises(ValueError, match="labels from 0 to 15"):
            backbone(x, maps + 8)

    def test_other_image_sizes_are_accepted(self, backbone):
        assert backbone.eval()(torch.randn(1, 3, 48, 40))[3].shape == (1, 48)

    def test_every_parameter_gets_a_gradient(self, backbone):
        sum(o.square().sum() for o in backbone(torch.randn(2, 3, 32, 32))).backward()
        assert [n for n, p in backbone.named_parameters() if p.grad is None] == []


class TestModes:
    def test_train_and_eval_return_self(self, backbone):
        assert backbone.train() is backbone and backbone.training
        assert backbone.eval() is backbone and not backbone.training

    @pytest.mark.parametrize("frozen", range(-1, 5))
    def test_frozen_stages_are_in_eval_mode_without_gradients(self, arch, frozen):
        backbone = HCast(arch, frozen_stages=frozen)
        backbone.train()
        expected = [] if frozen < 0 else [backbone.stem, *backbone.stages[:frozen]]
        if frozen == 4:
            expected.append(backbone.norm)
        modules = {m for part in expected for m in part.modules()}
        parameters = {id(p) for part in expected for p in part.parameters()}
        if frozen >= 0:
            parameters |= {id(backbone.cls_token), id(backbone.pos_embed)}
        for name, module in backbone.named_modules():
            if isinstance(module, (nn.BatchNorm2d, nn.Dropout, nn.LayerNorm)):
                assert module.training == (module not in modules), name
        assert {id(p) for p in backbone.parameters() if not p.requires_grad} == parameters

    def test_frozen_running_statistics_stay(self, arch):
        backbone = HCast(arch, frozen_stages=0).train()
        before = backbone.stem[0].norm.running_mean.clone()
        backbone(torch.randn(2, 3, 32, 32) + 5)
        assert torch.equal(before, backbone.stem[0].norm.running_mean)


class TestLayerDepth:
    def test_depths_grow_along_the_network(self):
        backbone = HCast("tiny")
        count = sum(backbone.config.depths) + 2
        depth = {name: backbone.get_layer_depth(f"backbone.{name}", "backbone.")[0] for name in backbone.state_dict()}
        assert depth["stem.0.conv.weight"] == depth["pos_embed"] == depth["cls_token"] == 0
        assert depth["stages.0.blocks.0.norm1.weight"] == 1
        assert depth["stages.0.pool.fc1.1.weight"] == depth["stages.0.blocks.2.norm1.weight"] == 3
        assert depth["stages.3.blocks.1.norm1.weight"] == count - 2
        assert depth["norm.weight"] == count - 1
        assert backbone.get_layer_depth("head.heads.0.weight", "backbone.") == (count - 1, count)

    def test_layer_wise_rates_fall_towards_the_stem(self, classifier):
        wrapper = LearningRateDecayOptimWrapperConstructor(
            dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1.0, weight_decay=0.05)),
            dict(layer_decay_rate=0.5),
        )(classifier)
        assert isinstance(wrapper, OptimWrapper)
        rates = {g["param_name"]: g["lr"] for g in wrapper.optimizer.param_groups}
        assert rates["head.heads.0.weight"] == 1.0
        assert rates["backbone.stages.3.blocks.0.attn.qkv.weight"] == 0.5
        assert rates["backbone.stem.0.conv.weight"] == 0.5**5
