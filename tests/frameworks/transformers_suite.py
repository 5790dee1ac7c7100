"""transformers' own test mixins on our classes; run_transformers_suite.py copies this file beside them and runs it.

The mixins take a model's classes and a tester that makes a tiny config and inputs, and test what transformers expects
of every model. Where the premise of a test does not hold for H-CAST, the override says why.
"""

import copy
import unittest

import numpy as np
import torch
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from hcast_zoo import Taxonomy
from hcast_zoo.integrations.transformers import (
    HCastBackbone,
    HCastConfig,
    HCastForImageClassification,
    HCastImageProcessor,
    HCastImageProcessorPil,
    HCastModel,
)

from ..test_backbone_common import BackboneTesterMixin
from ..test_configuration_common import ConfigTester
from ..test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin
from ..test_modeling_common import ModelTesterMixin, floats_tensor

# They tell the mixins that our classifier takes labels; otherwise its loss would not be tested.
MODEL_MAPPING_NAMES["hcast"] = "HCastModel"
MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES["hcast"] = "HCastForImageClassification"

TAXONOMY = Taxonomy.from_paths(
    [
        ("bird", "owl", "barn owl"),
        ("bird", "owl", "snowy owl"),
        ("bird", "gull", "herring"),
        ("mammal", "cat", "lion"),
        ("mammal", "cat", "tiger"),
        ("mammal", "dog", "wolf"),
    ]
)


class HCastModelTester:
    batch_size = 3
    image_size = 32
    num_channels = 3
    is_training = True
    num_hidden_layers = 4
    num_attention_heads = 3
    hidden_size = 48
    seq_length = 1 + 16  # of the first stage; the mixin checks only the first hidden state and attention

    def __init__(self, parent):
        self.parent = parent

    def get_config(self):
        return HCastConfig(
            taxonomy=TAXONOMY.to_dict(),
            image_size=self.image_size,
            embed_dim=self.hidden_size,
            depths=(1, 1, 1, 1),
            num_heads=self.num_attention_heads,
            num_superpixels=16,
            num_clusters=(8, 4, 2, 2),
        )

    def prepare_config_and_inputs_for_common(self):
        pixel_values = floats_tensor([self.batch_size, self.num_channels, self.image_size, self.image_size])
        return self.get_config(), {"pixel_values": pixel_values}


class HCastModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (HCastModel, HCastForImageClassification)
    test_resize_embeddings = False
    test_can_init_all_missing_weights_before_2023 = True  # without a copyright year in our files, it would be skipped
    labels_of_every_level = True

    def setUp(self):
        self.model_tester = HCastModelTester(self)
        if "eager_matches_sdpa" in self._testMethodName and "bf16" in self._testMethodName:
            # Hidden states are tokens in the order in which cluster centres were chosen, and rounding to half precision
            # may choose others, so the mixin must compare logits.
            self.all_model_classes = (HCastForImageClassification,)
        self.config_tester = ConfigTester(
            self, config_class=HCastConfig, has_text_modality=False, embed_dim=48, num_heads=3
        )

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if "labels" in inputs and self.labels_of_every_level:
            inputs["labels"] = inputs["labels"][:, None].repeat(1, len(TAXONOMY.levels))
        return inputs

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_labels_are_really_passed(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        inputs = self._prepare_for_class(inputs, HCastForImageClassification, return_labels=True)
        self.assertEqual(tuple(inputs["labels"].shape), (3, 3))
        self.assertGreater(HCastForImageClassification(config)(**inputs).loss.item(), 0)

    def test_problem_types(self):
        self.labels_of_every_level = False  # the test makes flat models, whose labels are (B,)
        super().test_problem_types()

    def test_model_get_set_embeddings(self):
        # The mixin expects an nn.Embedding; the embedding of an image is a stem of convolutions.
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            model = model_class(copy.deepcopy(config))
            self.assertIs(model.get_input_embeddings(), model.stem)
            new = torch.nn.Conv2d(3, 48, 8, 8)
            model.set_input_embeddings(new)
            self.assertIs(model.stem, new)
            self.assertIsNone(model.get_output_embeddings())

    def test_num_layers_is_small(self):
        # The mixin expects two layers at most; H-CAST has four stages of at least one.
        self.assertEqual(self.model_tester.get_config().depths, (1, 1, 1, 1))

    @unittest.skip("H-CAST has no inputs_embeds: superpixels are cut from pixels")
    def test_inputs_embeds(self):
        pass


class HCastBackboneTest(BackboneTesterMixin, unittest.TestCase):
    all_model_classes = (HCastBackbone,)
    config_class = HCastConfig

    def setUp(self):
        self.model_tester = HCastModelTester(self)


class HCastImageProcessingTester(ImageProcessingTester):
    def __init__(self, parent):
        super().__init__(
            parent,
            size={"shortest_edge": 20},
            crop_size={"height": 18, "width": 18},
            image_mean=[0.5, 0.5, 0.5],
            image_std=[0.5, 0.5, 0.5],
            num_superpixels=16,
        )

    def _get_image_processing_classes(self):
        return {"torchvision": HCastImageProcessor, "pil": HCastImageProcessorPil}


class HCastImageProcessingTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = HCastImageProcessingTester
    test_cast_dtype = True
    backend_equivalence_atol = 0.0  # ours agree to the bit

    def test_backends_equivalence(self):
        # The mixin downloads a picture; any will do.
        picture = np.random.default_rng(0).integers(0, 256, (101, 67, 3), dtype=np.uint8)
        outputs = [
            processor(**self.image_processor_dict)(picture, return_segments=True, return_tensors="pt")
            for processor in self.image_processing_classes.values()
        ]
        for key in ("pixel_values", "segments"):
            self.assertTrue(torch.equal(outputs[0][key], outputs[1][key]))

    @unittest.skip("hcast-zoo depends on torchvision, for the core's preprocessing")
    def test_pil_can_run_without_torchvision(self):
        pass
