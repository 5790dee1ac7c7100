"""HierarchicalDataset: the core's readers, and mmpretrain's data sets with a label for every level."""

import csv
import shutil

import numpy as np
import pytest
import torch
from mmengine.dataset import ClassBalancedDataset
from mmpretrain.datasets.categories import CUB_CATEGORIES
from mmpretrain.registry import DATASETS
from PIL import Image

from hcast_zoo.integrations.mmpretrain.config import load_taxonomy
from hcast_zoo.integrations.mmpretrain.dataset import HierarchicalDataset
from hcast_zoo.paper.trees import leaf_ids, load_tree, tree_names
from hcast_zoo.taxonomy.sources import TaxonomyError
from hcast_zoo.taxonomy.tree import Taxonomy
from hcast_zoo.weights.file import load_weights, packaged_weights


@pytest.fixture
def folder(picture_folder, taxonomy, test_pipeline):
    return dict(source=str(picture_folder), split="train", taxonomy=taxonomy.to_dict(), pipeline=test_pipeline)


def test_folders_give_labels_of_every_level(folder, taxonomy):
    dataset = DATASETS.build(dict(type="HierarchicalDataset", **folder))
    assert len(dataset) == 12 and dataset.metainfo["classes"] == taxonomy.names[-1]
    assert Taxonomy.from_dict(dataset.metainfo["taxonomy"]) == taxonomy
    for index, leaf in ((0, "herring gull"), (6, "lion")):
        info = dataset.get_data_info(index)
        assert info["gt_path"] == list(taxonomy.labels([None, None, leaf])) and leaf in info["img_path"]
        assert info["gt_label"] == info["gt_path"][-1]
    sample = dataset[0]["data_samples"]
    assert dataset[0]["inputs"].shape == (3, 32, 32) and sample.segments.shape == (32, 32)
    assert "Levels" in repr(dataset)


def test_the_taxonomy_comes_from_the_source(folder):
    del folder["taxonomy"]
    assert HierarchicalDataset(**folder).taxonomy.level_classes == (2, 4, 6)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_give_labels_of_every_level(tmp_path, picture_folder, taxonomy, test_pipeline, suffix):
    file = tmp_path / f"data{suffix}"
    pictures = [("train", "bird/owl/barn owl"), ("val", "mammal/dog/wolf")]
    rows = [[split, f"pictures/{split}/{path}/0.png", *path.split("/")] for split, path in pictures]
    if suffix == ".csv":
        with open(file, "w", newline="") as f:
            csv.writer(f).writerows([["split", "file", *taxonomy.levels], *rows])
    else:
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        columns = dict(zip(["split", "image", *taxonomy.levels], map(list, zip(*rows))))
        columns["image"] = [(tmp_path / name).read_bytes() for name in columns["image"]]
        pq.write_table(pa.table(columns), file)
    dataset = HierarchicalDataset(file.name, taxonomy, "val", data_root=str(tmp_path), pipeline=test_pipeline)
    assert len(dataset) == 1 and dataset[0]["data_samples"].gt_path.tolist() == [1, 3, 5]


def test_data_sets_can_be_cut_and_balanced(folder):
    assert len(HierarchicalDataset(**folder, indices=4)) == 4
    balanced = ClassBalancedDataset(HierarchicalDataset(**folder), oversample_thr=0.1)
    assert len(balanced) >= 12 and set(balanced.repeat_indices) == set(range(12))


def test_unknown_labels_have_no_category(tmp_path, taxonomy):
    folder = tmp_path / "bird" / "owl"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "some.png")
    dataset = HierarchicalDataset(str(tmp_path), taxonomy)
    assert dataset.get_data_info(0)["gt_path"] == [0, 0, -1] and dataset.get_cat_ids(0) == []


class TestMissingMaps:
    def test_a_pipeline_without_maps_is_refused(self, folder, test_pipeline):
        del test_pipeline[2]
        with pytest.raises(ValueError, match="expects a superpixel map, but none was made"):
            DATASETS.build(dict(type="HierarchicalDataset", **folder))
        test_pipeline[-1]["segments"] = False
        assert "segments" not in HierarchicalDataset(**folder)[0]["data_samples"]

    def test_a_step_after_the_maps_is_refused(self, folder, test_pipeline):
        test_pipeline.insert(3, dict(type="RandomFlip", prob=0.5))
        with pytest.raises(ValueError, match="must be the last step before packing, but RandomFlip follow"):
            HierarchicalDataset(**folder)


class TestAroundMmpretrain:
    @pytest.fixture
    def cub(self, tmp_path):
        """Three pictures of CUB-200-2011, in the archive's layout."""
        root = tmp_path / "CUB_200_2011"
        pictures = [(1, 0, 1), (2, 3, 1), (3, 199, 0)]  # picture, class, in the training split
        lines = {"images.txt": [], "image_class_labels.txt": [], "train_test_split.txt": []}
        for picture, label, train in pictures:
            name = f"{label + 1:03}.{CUB_CATEGORIES[label]}/{picture}.jpg"
            (root / "images" / name).parent.mkdir(parents=True)
            Image.new("RGB", (20, 20)).save(root / "images" / name)
            lines["images.txt"].append(f"{picture} {name}")
            lines["image_class_labels.txt"].append(f"{picture} {label + 1}")
            lines["train_test_split.txt"].append(f"{picture} {train}")
        for name, rows in lines.items():
            (root / name).write_text("\n".join(rows) + "\n")
        return dict(type="CUB", data_root=str(root), split="train")

    def test_classes_are_matched_by_name(self, cub):
        dataset = HierarchicalDataset(cub, "cub")
        paths = [dataset.get_data_info(i)["gt_path"] for i in range(len(dataset))]
        assert paths == [[11, 34, 0], [5, 8, 3]]  # albatross and ani in the paper's tree

    def test_a_taxonomy_and_a_split_are_needed(self, cub):
        with pytest.raises(ValueError, match="expected a taxonomy"):
            HierarchicalDataset(cub)
        with pytest.raises(ValueError, match="the split in its own config"):
            HierarchicalDataset(cub, "cub", split="train")

    def test_another_taxonomy_is_refused(self, cub):
        with pytest.raises(TaxonomyError, match="no node 'Black_footed_Albatross' at level 'variant'"):
            HierarchicalDataset(cub, "aircraft")

    @pytest.fixture
    def imagenet(self, tmp_path):
        """Living-17's classes and one more, in ImageNet's folders."""
        for name in [*leaf_ids("living17"), "n99999999"]:
            (tmp_path / "val" / name).mkdir(parents=True)
            Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "val" / name / "0.JPEG")
        return dict(type="CustomDataset", data_root=str(tmp_path), data_prefix="val")

    def test_classes_are_matched_by_id(self, imagenet):
        dataset = HierarchicalDataset(imagenet, "living17", match="id")
        assert len(dataset) == 34
        paths = {tuple(dataset.get_data_info(i)["gt_path"]) for i in range(34)}
        assert paths == set(load_taxonomy("living17").paths)
        info = next(dataset.get_data_info(i) for i in range(34) if "n01631663" in dataset.get_data_info(i)["img_path"])
        assert load_taxonomy("living17").path_names(info["gt_path"]) == ("salamander", "eft")

    def test_missing_classes_are_named(self, imagenet, tmp_path):
        shutil.rmtree(tmp_path / "val" / "n01631663")
        with pytest.raises(TaxonomyError, match="lacks 1 of the 34 classes of the taxonomy, such as n01631663"):
            HierarchicalDataset(imagenet, "living17", match="id")
        with pytest.raises(TaxonomyError, match="'cub' has no identifiers for its leaves"):
            HierarchicalDataset(imagenet, "cub", match="id")

    def test_classes_are_matched_by_order(self, imagenet, taxonomy):
        with pytest.raises(TaxonomyError, match="the data set has 35 classes, the level 'species' of the taxonomy 6"):
            HierarchicalDataset(imagenet, taxonomy, match="order")
        flat = Taxonomy.from_paths([(f"{i // 7}", f"{i}") for i in range(35)])
        dataset = HierarchicalDataset(imagenet, flat, match="order")
        assert [dataset.get_data_info(i)["gt_path"] for i in (0, 34)] == [[0, 0], [4, 34]]


class TestTaxonomies:
    def test_trees_of_the_paper_are_loaded_by_name(self):
        for name in tree_names():
            assert load_taxonomy(name) == load_tree(name)

    def test_a_taxonomy_is_loaded_from_every_source(self, taxonomy, tmp_path, tiny_weights):
        taxonomy.save(tmp_path / "tree.json")
        for source in (taxonomy, taxonomy.to_dict(), tmp_path / "tree.json", str(tiny_weights)):
            assert load_taxonomy(source) == taxonomy
        for name in packaged_weights():
            assert load_taxonomy(name) == load_weights(name).taxonomy

    def test_an_unknown_match_is_refused(self, folder):
        with pytest.raises(ValueError, match="match: expected 'name', 'order' or 'id', got 'wnid'"):
            HierarchicalDataset(**folder, match="wnid")


def test_samples_can_come_from_a_worker(folder):
    """Their maps and labels are pickled."""
    loader = torch.utils.data.DataLoader(HierarchicalDataset(**folder), 3, num_workers=1, collate_fn=list)
    assert next(iter(loader))[2]["data_samples"].segments.dtype == torch.int16
