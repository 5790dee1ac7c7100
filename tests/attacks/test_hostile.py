"""Hostile and broken input: every bad case that we know of, and quick searches for more.

``tests/attacks/fuzz.py`` searches longer; docs/reliability.md has its figures.
"""

import io
import json
import os
import random
import shlex
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from hcast_zoo import Predictor
from hcast_zoo.cli import main
from hcast_zoo.common.claim import claim
from hcast_zoo.common.processes import check_device
from hcast_zoo.common.text import brief, clip, printable, to_json
from hcast_zoo.data.dataset import HierarchicalDataset
from hcast_zoo.data.listing import Listing
from hcast_zoo.data.pictures import PictureError, read_picture
from hcast_zoo.data.splits import hold_out
from hcast_zoo.data.transforms import eval_transform, middle_box
from hcast_zoo.network.config import HCastConfig
from hcast_zoo.paper.readers import find_file as find_file
from hcast_zoo.segments.report import free_folder
from hcast_zoo.sharing.model_card import Evaluation, read_evaluations, render_card
from hcast_zoo.taxonomy.sources import MAX_LEVELS, TaxonomyError
from hcast_zoo.taxonomy.tree import Taxonomy
from hcast_zoo.training.checkpoint import verify
from hcast_zoo.training.recipe import load_recipe
from hcast_zoo.weights.file import Weights, WeightsError, build_model, load_weights, save_weights
from hcast_zoo.weights.hub import parse_repository
from hcast_zoo.weights.official import read_checkpoint

WILD = [
    "\x1b[31m\x1b]0;x\x07",
    "a\0b",
    "\x9b31m",
    "<script>alert(1)</script>",
    "`x`|y",
    "{{ 7 * 7 }}",
    "../../etc/passwd",
    "\u202egnp",
    "a\nb",
    "é" * 300,
]
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(WILD),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG file of chunks, each a name and its bytes."""
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in chunks:
        data += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return data


def header(width: int, height: int, bits: int = 8, colour: int = 2) -> tuple[bytes, bytes]:
    """Return a PNG file's first chunk."""
    return b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)


def encode(picture, format="PNG", **options):
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


# Pictures


@pytest.mark.parametrize(
    "data, message",
    [
        (png(header(60_000, 60_000), (b"IDAT", zlib.compress(b"\0" * 1000))), "could be decompression bomb"),
        (png(header(1, 2_000_000), (b"IDAT", zlib.compress(b"\0" * 1000))), "per side|damaged"),
        (png(header(30, 30), (b"IDAT", b"\0")), "damaged"),
        (png(header(4, 4), (b"zTXt", b"k\0\0" + zlib.compress(b"0" * 10**8))), "damaged"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n%%EOF\n", "unknown format"),
    ],
)
def test_bombs_and_programs_are_refused(data, message):
    with pytest.raises(PictureError, match=message):
        read_picture(data)


def test_a_false_length_in_a_header_is_refused_as_damage(tmp_path):
    file = tmp_path / "x.png"
    file.write_bytes(png(header(30, 30)) + struct.pack(">I", 2**31 - 1) + b"IDAT" + b"0" * 50)
    with pytest.raises(PictureError, match="damaged"):
        read_picture(file)


def test_pipes_and_devices_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for name in (tmp_path / "pipe.png", "/dev/zero"):
        with pytest.raises(PictureError, match="expected a file, got a pipe, a socket or a device"):
            read_picture(name)

    for name, message in (("a\0b.png", "null byte"), ("x" * 5000, "File name too long")):
        with pytest.raises(PictureError, match=message):
            read_picture(name)
    with pytest.raises(PictureError, match=r"expected a picture \(a name, .*, got 5"):
        read_picture(5)

    with open(tmp_path / "long.png", "wb") as file:
        file.truncate(2**30 + 1)  # sparse: it takes no disk space
    with pytest.raises(PictureError, match="bytes, expected 1,073,741,824 at most"):
        read_picture(tmp_path / "long.png")


@pytest.mark.parametrize("size", [(65_535, 1), (1, 50_000), (4001, 40), (33, 661)])
def test_extreme_aspect_ratio_is_cropped(size):
    """Only the middle is read: here it is bright, and the dark ends do not show."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    left, top, right, bottom = middle_box(size)
    assert (left + right, top + bottom) == size  # centred exactly
    assert max(right - left, bottom - top) <= 20 * min(size) + 1
    pixels[top:bottom, left:right] = 255
    config = HCastConfig(image_size=32, mean=(0.0,) * 3, std=(1.0,) * 3, num_superpixels=16, num_clusters=(8, 4, 2, 2))
    assert eval_transform(config)(Image.fromarray(pixels)).min() == 1


def test_cropping_a_long_picture_first_does_not_change_the_result():
    """The result is that of resizing the whole picture, to within a fraction of a pixel."""
    x = np.sin(np.arange(20 * 64 + 301) / 9)[None, :, None]
    pixels = Image.fromarray(np.broadcast_to(x * 100 + 128, (64, x.shape[1], 3)).astype(np.uint8))
    config = HCastConfig(image_size=64, crop_pct=1.0, num_superpixels=16, num_clusters=(8, 4, 2, 2))
    steps = eval_transform(config)

    whole = pixels
    for step in steps.transforms[1:]:
        whole = step(whole)
    assert (steps(pixels) - whole).abs().max() < 0.1


def test_infinite_pixels_are_clipped():
    values = np.array([[np.inf, -np.inf, np.nan, 0.5]], np.float32)
    assert np.asarray(read_picture(encode(Image.fromarray(values), "TIFF")))[0, :, 0].tolist() == [255, 0, 0, 128]


GOOD = [
    encode(Image.effect_noise((16, 12), 50)),
    encode(Image.new("RGB", (9, 9), "red"), "JPEG"),
    encode(Image.new("RGBA", (7, 9), (1, 2, 3, 4)), "WEBP"),
    encode(Image.new("P", (8, 8)), "GIF"),
    encode(Image.new("I;16", (8, 8), 7), "TIFF"),
]


@QUICK
@given(
    st.sampled_from(GOOD),
    st.lists(st.tuples(st.integers(0, 200), st.binary(max_size=6)), max_size=5),
    st.integers(0, 2000),
)
def test_a_changed_picture_is_read_or_refused(data, changes, end):
    data = bytearray(data)
    for at, piece in changes:
        data[at : at + len(piece)] = piece
    try:
        picture = read_picture(bytes(data[:end]))
    except PictureError as error:
        assert 10 < len(str(error)) < 1000
    else:
        assert picture.mode == "RGB" and min(picture.size) > 0


# Taxonomies


def test_very_large_trees_are_built_and_very_deep_ones_refused():
    names = [str(i) for i in range(200_000)]
    t = Taxonomy(("a", "b"), (names[:500], names), ([i % 500 for i in range(200_000)],))
    assert len(t.paths) == 200_000
    with pytest.raises(TaxonomyError, match="no node '1234x' at level 'b': did you mean '1234'"):
        t.labels(["0", "1234x"])

    with pytest.raises(TaxonomyError, match="no node 'nothing'"):
        t.find("nothing")

    deep = [str(i) for i in range(10_000)]
    with pytest.raises(TaxonomyError, match=f"longer than the {MAX_LEVELS} levels"):
        Taxonomy.from_paths([deep])
    with pytest.raises(TaxonomyError, match=f"at most {MAX_LEVELS}, got 10000"):
        Taxonomy(deep, [["x"]] * 10_000, [[0]] * 9_999)
    assert Taxonomy.from_paths([deep[:MAX_LEVELS]]).paths == ((0,) * MAX_LEVELS,)


def test_circular_links_and_very_deep_folders_are_refused(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/again").symlink_to(tmp_path / "a")
    for read in (Taxonomy.from_folder, HierarchicalDataset.load):
        with pytest.raises(TaxonomyError, match=r"again is the same folder as .*a: expected a tree"):
            read(tmp_path)

    deep = tmp_path / "deep"
    deep.mkdir()
    here = os.open(deep, os.O_RDONLY)
    for _ in range(150):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    with pytest.raises(TaxonomyError, match=f"at most {MAX_LEVELS} levels of folders"):
        Taxonomy.from_folder(deep)


def test_linked_folders_are_read(picture_folder, tmp_path, taxonomy):
    """Subsets of data sets are often folders of links."""
    (tmp_path / "some").mkdir()
    for name in ("bird", "mammal"):
        (tmp_path / "some" / name).symlink_to(picture_folder / "val" / name)
    linked, plain = (HierarchicalDataset.load(f, taxonomy) for f in (tmp_path / "some", picture_folder / "val"))
    assert len(linked) == len(plain) == 12 and torch.equal(linked.labels, plain.labels)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"name": 5}, "expected a name of the taxonomy, got 5"),
        ({"name": "\ud800"}, "half of a surrogate pair"),
        ({"levels": ["a", "\ud800"]}, "half of a surrogate pair"),
        ({"names": [["x"], ["\udfff"]]}, "node 0 of level 'b'.*half of a surrogate pair"),
        ({"names": [["x"], ["y" * 5000]]}, "got 5000 characters.*expected 1000 at most"),
        ({"names": [["x"], [["y"]]]}, "expected a name, got"),
        ({"parents": [[True]]}, "expected a parent from 0 to 0, got True"),
        ({"parents": [[10**30]]}, "expected a parent from 0 to 0, got 1000000"),
    ],
)
def test_wrong_fields_of_a_taxonomy_are_explained(change, message):
    good = {"name": "", "levels": ["a", "b"], "names": [["x"], ["y"]], "parents": [[0]]}
    Taxonomy.from_dict(good)
    with pytest.raises(TaxonomyError, match=message) as caught:
        Taxonomy.from_dict({**good, **change})
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "name, data, message",
    [
        ("t.json", b"[" * 200_000, "expected JSON: maximum recursion"),
        ("t.csv", b"a,b\n\xff,y\n", "expected CSV in UTF-8"),
        ("t.csv", b"a,b\nx,y,z\n", "line 2: expected 2 cells, got 3: put quotes around a name with a comma"),
        ("t.csv", b"a,a\nx,y\n", "column 'a' occurs twice"),
        ("t.csv", b'a,b\n"' + b"x" * 200_000 + b'",y\n', "field larger than field limit"),
    ],
)
def test_wrong_files_of_a_taxonomy_are_explained(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(TaxonomyError, match=f"{name}.*{message}"):
        Taxonomy.load(tmp_path / name)


@pytest.mark.parametrize("path", ["abc", 5, None, [1.5], [float("nan")], [["a"]], [{}], {"a": 1}, [10**30]])
def test_paths_of_other_types_are_refused(taxonomy, path):
    with pytest.raises(TaxonomyError, match="expected"):
        taxonomy.labels(path)
    with pytest.raises(TaxonomyError, match="expected"):
        Taxonomy.from_paths([path])


@QUICK
@given(
    st.fixed_dictionaries({"levels": PLAIN, "names": PLAIN, "parents": PLAIN}, optional={"name": PLAIN, "x": PLAIN})
    | PLAIN
)
def test_any_json_is_read_as_a_taxonomy_or_refused(data):
    try:
        t = Taxonomy.from_dict(data)
    except TaxonomyError as error:
        assert len(str(error)) < 2000
    else:
        assert Taxonomy.from_dict(json.loads(json.dumps(t.to_dict()))) == t


@QUICK
@given(st.lists(st.lists(st.sampled_from([*"abc", "", " ", *WILD]), max_size=4), max_size=6))
def test_any_paths_are_read_as_a_taxonomy_or_refused(paths):
    try:
        t = Taxonomy.from_paths(paths)
    except TaxonomyError:
        return
    known = {t.path_names(path) for path in t.paths}

    def leads_along(names, path):  # a name below several parents gets a suffix: "other (owls)"
        return all(name == node or name.startswith(f"{node.strip()} (") for name, node in zip(names, path))

    assert all(any(len(k) >= len(path) and leads_along(k, path) for k in known) for path in paths)


# Configs and weights


@pytest.mark.parametrize(
    "field, value",
    [
        ("embed_dim", 10**9),
        ("embed_dim", "384"),
        ("level_classes", [10] * 101),
        ("level_classes", [10**30]),
        ("level_classes", 5),
        ("mlp_ratio", "4"),
        ("mlp_ratio", -1),
        ("mlp_ratio", 1e9),
        ("mlp_ratio", float("nan")),
        ("depths", [300, 1, 1, 1]),
        ("last_pool", "false"),
        ("mask_empty", 1),
        ("drop_rate", "0"),
        ("drop_rate", None),
        ("mean", 0.5),
        ("mean", ["a", "b", "c"]),
        ("std", [float("inf")] * 3),
        ("std", [1e-300] * 3),
        ("crop_pct", 1e-300),
        ("crop_pct", "1"),
        ("head_stages", []),
        ("superpixels", ["seeds"]),
        ("interpolation", None),
        ("image_size", True),
    ],
)
def test_wrong_fields_of_a_config_are_explained(field, value):
    with pytest.raises(ValueError, match=f"{field}: expected "):
        HCastConfig.from_dict({field: value})


@QUICK
@given(st.dictionaries(st.sampled_from(sorted(HCastConfig().to_dict())), PLAIN, max_size=3))
def test_any_fields_are_read_as_a_config_or_refused(data):
    try:
        config = HCastConfig.from_dict(data)
    except ValueError as error:
        assert ":" in str(error)
    else:
        assert HCastConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def rewrite(file, **metadata):
    """Replace metadata of a weights file, and keep its tensors."""
    weights = load_weights(file)
    known = {"config": json.dumps(weights.config.to_dict()), "taxonomy": json.dumps(weights.taxonomy.to_dict())}
    save_file({k: v.clone() for k, v in weights.state_dict.items()}, file, {**known, **metadata})


@pytest.mark.parametrize(
    "metadata, message",
    [
        (
            {"config": json.dumps({"embed_dim": 10**9})},
            "embed_dim: expected an integer from 1 to 65536, got 1000000000",
        ),
        ({"config": "[" * 100_000}, "invalid config"),
        ({"config": '{"embed_dim": NaN}'}, "embed_dim"),
        ({"taxonomy": "[" * 100_000}, "invalid config or taxonomy"),
        ({"calibration": "[" * 100_000}, "invalid calibration"),
        ({"calibration": json.dumps({"temperatures": ["a" * 10**5, 1, 1]})}, "expected a list of temperatures"),
        ({"calibration": json.dumps({"temperatures": [1, 1, 1], "path_temperature": 1e-300})}, "positive temperatures"),
        ({"calibration": json.dumps({"temperatures": [1, 1, 1], "fitted_on": 7})}, "fitted_on, got 7"),
    ],
)
def test_wrong_metadata_of_weights_is_explained(tiny_weights, metadata, message):
    rewrite(tiny_weights, **metadata)
    with pytest.raises(WeightsError, match=message) as caught:
        load_weights(tiny_weights)
    assert len(str(caught.value)) < 1000


def test_damaged_tensors_of_weights_are_explained(tiny_weights):
    weights = load_weights(tiny_weights)
    weights.state_dict["cls_token"] = weights.state_dict["cls_token"].to(torch.int64)
    with pytest.raises(WeightsError, match=r"cls_token is torch\.int64, not a kind of torch\.float32"):
        build_model(weights)

    good = tiny_weights.read_bytes()
    for damaged in (good[:-100], good + b"x", b"\xff" * 8 + good[8:]):
        tiny_weights.write_bytes(damaged)
        with pytest.raises(WeightsError, match="expected a complete safetensors file"):
            load_weights(tiny_weights)


def test_no_giant_is_built_for_small_tensors(tiny_weights, picture_folder, tmp_path, capsys):
    """A config of 65,536 channels needs terabytes; the memory is estimated before anything is allocated."""
    pytest.importorskip("accelerate")
    config = {**load_weights(tiny_weights).config.to_dict(), "embed_dim": 65536, "num_heads": 8, "pool_heads": 8}
    rewrite(tiny_weights, config=json.dumps(config))
    picture = str(next((picture_folder / "val").rglob("*.png")))
    for command in (["predict", picture], ["train", "--data", str(picture_folder), "--output", str(tmp_path / "run")]):
        assert main([*command, "--model", str(tiny_weights)]) == 2
        assert "embed_dim: 65536: the model and one picture" in capsys.readouterr().err


# Tables


def write_table(path, data):
    if isinstance(data, bytes):
        path.write_bytes(data)
    else:
        pq = pytest.importorskip("pyarrow.parquet")
        pa = pytest.importorskip("pyarrow")
        pq.write_table(pa.table(data), path)
    return path


@pytest.mark.parametrize(
    "name, data, message",
    [
        ("t.csv", b"file,class,family,species\na.png,bird,owl,barn owl,x\n", "line 2: expected 4 cells, got 5"),
        ("t.csv", b"file,class,family,species\n\xff,bird,owl,barn owl\n", "expected CSV in UTF-8"),
        ("t.csv", b"file,file,class\na,b,c\n", "column 'file' occurs twice"),
        ("t.jsonl", b"[" * 100_000, "line 1: expected an object with file and path"),
        ("t.jsonl", b"\xff\xfe", "line 1: expected an object"),
        ("t.jsonl", b'{"file": 5, "path": ["bird"]}', "name of a file and a list of names, got 5"),
        ("t.jsonl", b'{"file": "a", "path": "bird"}', "a list of names, got 'a' and 'bird'"),
        ("t.jsonl", b'{"file": "a", "path": [1.5]}', "expected a name or a label at level 'class', got 1.5"),
        ("t.parquet", b"PAR1nothingPAR1", "expected a complete parquet file"),
        (
            "t.parquet",
            {"image": ["x"], "class": ["bird"], "family": ["owl"], "species": ["barn owl"]},
            "binary.*got string",
        ),
        (
            "t.parquet",
            {"image": [b"x"], "class": [1.5], "family": ["owl"], "species": ["barn owl"]},
            "names or labels in column 'class', got double",
        ),
        ("t.parquet", {"image": [b"x"], "class": [["a"]], "family": ["owl"], "species": ["barn owl"]}, "got list"),
    ],
)
def test_wrong_tables_are_explained(tmp_path, taxonomy, name, data, message):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    file = write_table(tmp_path / name, data)
    with pytest.raises(ValueError, match=message) as caught:
        HierarchicalDataset.load(file, taxonomy)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("path", [[["bird", "owl", "barn owl"]], [{}], [1.0, 2, 3], 5, None])
def test_an_invalid_path_after_a_valid_one_is_refused(taxonomy, path):
    """The labels of a path are cached, and may not be returned for another path that compares equal."""
    with pytest.raises(TaxonomyError, match=r"^b: "):
        HierarchicalDataset(["a", "b"], [[1, 2, 3], path], taxonomy)


def test_a_row_without_a_picture_is_left_out(tmp_path, taxonomy):
    table = {
        "image": [None, encode(Image.new("RGB", (8, 8)))],
        "class": ["bird"] * 2,
        "family": ["owl"] * 2,
        "species": ["barn owl"] * 2,
        "split": ["val", "val"],
    }
    data = HierarchicalDataset.load(write_table(tmp_path / "t.parquet", table), taxonomy, "val")
    with pytest.warns(UserWarning, match="left out"):
        assert data[0] is None
    assert data[1][0].size == (8, 8)


@QUICK
@given(st.sampled_from(["csv", "jsonl"]), st.binary(max_size=80), st.integers(0, 100))
def test_a_changed_table_is_read_or_refused(tmp_path, taxonomy, kind, piece, at):
    good = {
        "csv": b"file,class,family,species,split\na.png,bird,owl,barn owl,x\nb.png,mammal,cat,lion,y\n",
        "jsonl": b'{"file": "a.png", "path": ["bird", "owl"]}\n{"file": "b.png", "path": [1, 2, 3]}\n',
    }[kind]
    file = tmp_path / f"t.{kind}"
    file.write_bytes(good[:at] + piece + good[at + len(piece) :])
    try:
        data = HierarchicalDataset.load(file, taxonomy)
    except ValueError as error:
        assert str(error) and not isinstance(error, UnicodeError)
    else:
        assert (data.labels < torch.tensor(taxonomy.level_classes)).all()


# Names


@pytest.fixture
def wild(tiny_model, tiny_config, tmp_path):
    """Write weights with a hostile name everywhere; return the file."""
    t = Taxonomy(
        tuple(f"{WILD[i]}{i}" for i in range(3)),
        tuple(tuple(f"{WILD[(i + n) % len(WILD)]}{n}" for n in range(size)) for i, size in enumerate((2, 4, 6))),
        ((0, 0, 1, 1), (0, 0, 1, 2, 2, 3)),
        WILD[0],
    )
    metadata = {key: "".join(WILD).replace("\0", "") for key in ("name", "license", "description", "limits", "data")}
    save_weights(Weights(tiny_config, t, tiny_model.state_dict(), metadata), tmp_path / "wild.safetensors")
    return tmp_path / "wild.safetensors"


@pytest.mark.slow
def test_control_characters_in_names_do_not_reach_the_terminal(wild, picture_folder, tmp_path, capsys):
    t, rows = load_weights(wild).taxonomy, []
    image = next((picture_folder / "val").rglob("*.png")).read_bytes()
    for path in t.paths:
        rows.append((image, *t.path_names(path), "val"))

    table = dict(zip(("image", *t.levels, "split"), map(list, zip(*rows))))
    data = str(write_table(tmp_path / "t.parquet", table))
    picture = tmp_path / "a\x1b[31m.png"
    picture.write_bytes(rows[0][0])
    missing = str(tmp_path / "no\x1b[31m\n.png")

    for command in (
        ["predict", str(picture), missing],
        ["predict", str(picture), missing, "--json"],
        ["predict", str(picture), "--back-off", "0.9"],
        ["evaluate", "--data", data],
        ["evaluate", "--data", data, "--json"],
        ["adapt", str(picture), "--target", t.names[0][0]],
        ["segment", str(picture), missing, "--output", str(tmp_path / "out")],
        ["adapt", missing, "--target", "x"],
        ["evaluate", "--data", missing],
        ["predict", str(picture), "--within", "\x1b[31m"],
    ):
        main([*command, "--model", str(wild)])
        captured = capsys.readouterr()
        for text in (captured.out, captured.err):
            assert not [c for c in text if not c.isprintable() and c not in "\n\t\r"], command

    for command in (
        ["info", str(wild)],
        ["info", missing],
        ["calibrate", str(wild), "--data", data, "--output", str(tmp_path / "c.safetensors")],
        ["fly\x1b[31m"],
        ["info", "--x\x1b[31m"],
    ):
        try:
            main(command)
        except SystemExit as stop:
            assert stop.code == 2
        captured = capsys.readouterr()
        assert "\x1b" not in captured.out + captured.err and "\x9b" not in captured.out + captured.err, command


def test_markup_in_names_does_not_reach_the_model_card(wild):
    results = {"best_path": {"fpa": 1.0, f"accuracy/{WILD[3]}": 1.0}, WILD[3]: {"fpa": 1.0, "y": 2.0}}
    entry = {
        "sha256": "00",
        "data": WILD[3],
        "split": WILD[4],
        "pictures": 5,
        "results": results,
        "command": f"x`\n# head\n{WILD[3]}",
        "commit": f"{WILD[3]}\n# head",
        "date": WILD[0],
        "torch": WILD[3],
    }
    weights = load_weights(wild)
    text = render_card(weights, [Evaluation(**entry)], "x", "org/name")
    assert "<script" not in text and "\x1b" not in text and "\x9b" not in text and "\n# head" not in text


def test_a_file_name_that_is_not_utf8_does_not_stop_the_job(picture_folder, tiny_weights, tmp_path, capsys):
    pytest.importorskip("pyarrow")
    name = os.fsdecode(b"\xff\xfe.png")
    (tmp_path / name).write_bytes(next((picture_folder / "val").rglob("*.png")).read_bytes())
    for options in ([], ["--json"], ["--output", str(tmp_path / "out")]):
        assert main(["predict", str(tmp_path / name), "--model", str(tiny_weights), *options]) == 0
        out = capsys.readouterr().out
        out.encode()  # raises if it is not text
        assert "--json" not in options or json.loads(out)["file"] == str(tmp_path / name)


@pytest.mark.parametrize(
    "name", ["../../x.png", "/etc/passwd", "..", "a/../../b.png", ".hidden.png", "\x1b[31m.png", "x" * 200 + ".png"]
)
def test_a_picture_name_cannot_leave_the_output_folder(tmp_path, name):
    folder = free_folder(tmp_path / "out", name)
    assert folder.resolve().parent == (tmp_path / "out").resolve() and folder.name.isprintable()


@pytest.mark.parametrize("source", ["../x", "a/../b", "org/..", "-x/y", "org/name@../x" * 2, "a/b\n", "https://x/y"])
def test_a_repository_name_cannot_leave_the_cache(source):
    parsed = parse_repository(source)
    assert parsed is None or (".." not in parsed[0].split("/") and parsed[0].isprintable())


@pytest.mark.parametrize("device", ["banana", "cuda:99", "meta", "", "cpu:x", "\x1b[31m", "privateuseone"])
def test_unknown_devices_are_refused(device, tiny_weights, capsys):
    with pytest.raises(ValueError, match="expected a device"):
        check_device(device)
    assert main(["predict", "x.png", "--model", str(tiny_weights), "--device", device]) == 2
    captured = capsys.readouterr()
    assert "expected a device" in captured.err and "\x1b" not in captured.err


def test_untrusted_text_is_made_printable_and_short():
    assert printable("a\x1b\n\x9b\u202eé") == "a" + "\N{REPLACEMENT CHARACTER}" * 4 + "é"
    assert len(brief("x" * 10**6)) < 200 and len(clip("x" * 10**6)) < 600 and clip("short") == "short"
    for wild in ("\x1b", "\x7f", "\x9b", "\ud800", "\u2028", "\U000e0001", "é", '"\\'):
        text = to_json({"a": wild})
        assert json.loads(text) == {"a": wild} and text.isprintable() and text.encode()
    assert "é" in to_json("é")


WORDS = "predict info evaluate convert calibrate --json --model --data --device --batch-size -1 0 x".split()


@QUICK
@given(st.lists(st.sampled_from([*WORDS, WILD[0], *WILD[2:]]), max_size=6))
def test_any_command_line_ends_with_a_documented_exit_code(tiny_weights, words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hcast_zoo.cli.options.DEFAULT_MODEL", str(tiny_weights))
        patch.setenv("COLUMNS", "100")
        try:
            assert main(words) in (0, 1, 2)
        except SystemExit as stop:
            assert stop.code in (0, 2)


def test_weights_with_hostile_labels_still_predict(wild, picture_folder):
    """Labels may have any form."""
    predictor = Predictor(wild)
    (answer,) = predictor.predict([next((picture_folder / "val").rglob("*.png"))])
    assert predictor.taxonomy.labels(answer.path)


def test_a_list_of_files_that_is_not_text_is_refused(tmp_path, tiny_weights, capsys):
    assert main(["predict", "--files-from", str(tiny_weights), "--model", str(tiny_weights)]) == 2
    error = capsys.readouterr().err
    assert "expected a text file that names a picture per line" in error and len(error) < 500


def test_invalid_settings_are_refused(picture_folder, tmp_path, tiny_weights, capsys):
    pytest.importorskip("accelerate")
    command = ["train", "--data", str(picture_folder), "--output", str(tmp_path / "run"), "--model", str(tiny_weights)]
    command += ["--batch-size", "4"]

    for words, message in (
        (["--auto-augment", "0.1"], "auto_augment: expected a policy of timm"),
        (["--workers", "1000000000"], "workers: expected 0 to 256"),
        (["--opt", "magic"], "magic"),
    ):
        assert main([*command, *words]) == 2
        assert message in capsys.readouterr().err

    with pytest.raises(SystemExit):
        main(["predict", "x.png", "--workers", "1000000000"])
    assert "expected 0 to 256" in capsys.readouterr().err


def test_malformed_evaluations_are_refused(tmp_path):
    good = {
        "sha256": "0",
        "data": "a",
        "split": None,
        "pictures": 1,
        "results": {"best_path": {"fpa": 1.0}},
        "command": "c",
        "commit": "d",
    }
    file = tmp_path / "e.json"
    for change in (
        {"results": 5},
        {"results": {}},
        {"results": {"a": {}}},
        {"results": {"a": {"b": "1"}}},
        {"results": {"a": {"b": None}}},
        {"data": 7},
        {"pictures": "9"},
        {"commit": ["x"]},
        {"extra": 1},
    ):
        file.write_text(json.dumps([{**good, **change}]))
        with pytest.raises(ValueError, match="expected evaluations written by"):
            read_evaluations(file)

    file.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="expected evaluations written by"):
        read_evaluations(file)

    file.write_text(json.dumps([good]))
    assert len(read_evaluations(file)) == 1


def test_an_error_about_a_long_file_name_is_short(tmp_path):
    taxonomy = Taxonomy.from_paths([("a", "b"), ("a", "c")])
    table = tmp_path / "data.csv"
    table.write_text(f"file,level_1,level_2\n{'x' * 70_000}.png,a,unknown\n")
    with pytest.raises(TaxonomyError) as error:
        HierarchicalDataset.load(table, taxonomy)
    assert "unknown" in str(error.value) and len(str(error.value)) < 2000


# Files that do not end, tables that fill memory, closed streams


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_are_refused_by_every_reader(tmp_path, kind, taxonomy, tiny_weights, capsys):
    def make(name):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
        return path

    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    make("config.json")
    for read, path in (
        (load_weights, make("w.safetensors")),
        (load_weights, make("folder/model.safetensors").parent),
        (load_weights, tmp_path / "model.safetensors"),  # with config.json beside it
        (Taxonomy.load, make("t.json")),
        (Taxonomy.load, make("t.csv")),
        (lambda p: HierarchicalDataset.load(p, taxonomy), make("d.csv")),
        (lambda p: HierarchicalDataset.load(p, taxonomy), make("d.jsonl")),
        (lambda p: HierarchicalDataset.load(p, taxonomy), make("d.parquet")),
        (read_checkpoint, make("c.pth")),
        (read_checkpoint, make("c.safetensors")),
        (load_recipe, make("recipe.json")),
        (read_evaluations, make("evaluations.json")),
        (lambda p: claim(p, {"a": {}}, holds="a job", mend="another"), make("plan.json")),
        (verify, make("checkpoint/progress.json").parent),
        (lambda p: find_file([p.parent], p.name), make("train_mini.json")),
    ):
        with pytest.raises(ValueError, match="expected a file, got a pipe, a socket or a device"):
            read(path)

    assert main(["predict", "--files-from", str(make("list.txt")), "--model", str(tiny_weights)]) == 2
    assert "expected a file, got a pipe" in capsys.readouterr().err
    held_out = hold_out(Listing(tmp_path, [make("p.png")] * 2, [["a"]] * 2), 0.5)  # only the name is used
    assert len(held_out.pictures) == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_are_refused_by_frameworks(tmp_path, kind):
    for name in ("config.json", "w.safetensors", "w.pth"):
        os.mkfifo(tmp_path / name) if kind == "pipe" else (tmp_path / name).symlink_to("/dev/zero")

    timm = pytest.importorskip("timm")
    for name in ("w.safetensors", "w.pth"):
        with pytest.raises(FileNotFoundError):
            timm.create_model("hcast_tiny", checkpoint_path=str(tmp_path / name))

    transformers = pytest.importorskip("transformers")
    with pytest.raises((OSError, ValueError), match="config"):
        transformers.AutoConfig.from_pretrained(tmp_path, local_files_only=True)


def test_deeply_nested_json_is_refused(tmp_path):
    """Python raises RecursionError, which is not a ValueError."""
    (tmp_path / "checkpoint").mkdir()
    for read, name in (
        (lambda p: claim(p, {"a": {}}, holds="a job", mend="another"), "plan.json"),
        (lambda p: verify(p.parent), "checkpoint/progress.json"),
        (load_recipe, "recipe.json"),
        (Taxonomy.load, "t.json"),
    ):
        (tmp_path / name).write_text("[" * 100_000 + "]" * 100_000)
        with pytest.raises(ValueError, match=r"nested too deeply|recursion"):
            read(tmp_path / name)


def test_a_pipe_or_a_device_is_not_replaced_by_an_output(tmp_path, tiny_weights, picture_folder, capsys):
    """Otherwise `--output /dev/null`, run by root, would replace the device."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link.safetensors").symlink_to("pipe")
    command = ["calibrate", str(tiny_weights), "--data", str(picture_folder), "--output"]
    assert main([*command, str(tmp_path / "link.safetensors")]) == 2
    assert "expected a file, got a pipe, a socket or a device" in capsys.readouterr().err
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link.safetensors").is_symlink()


def test_a_very_long_line_is_shortened_in_the_message(tmp_path, tiny_weights, capsys):
    (tmp_path / "list.txt").write_text("x" * 1_000_000)
    assert main(["predict", "--files-from", str(tmp_path / "list.txt"), "--model", str(tiny_weights)]) == 1
    error = capsys.readouterr().err
    assert "File name too long" in error and len(error) < 10_000


def test_a_small_table_that_fills_memory_is_refused(tmp_path, taxonomy, monkeypatch):
    """A dictionary's value is stored once and may be repeated without limit; the footer does not show the real size."""
    pq = pytest.importorskip("pyarrow.parquet")
    pa = pytest.importorskip("pyarrow")
    picture = b"\0" * 2**24
    columns = {"class": ["bird"] * 8, "family": ["owl"] * 8, "species": ["barn owl"] * 8}
    file = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"image": [picture] * 8, **columns}), file, compression="zstd")
    assert file.stat().st_size < 10_000
    with pytest.raises(ValueError, match="over 100 times as many"):
        HierarchicalDataset.load(file, taxonomy)

    pq.write_table(pa.table({"image": [os.urandom(2**20)] * 8, **columns}), file)
    assert len(HierarchicalDataset.load(file, taxonomy)) == 8

    monkeypatch.setenv("HCAST_ZOO_MEMORY_GIB", str(2**-8))
    with pytest.raises(ValueError, match=r"bomb\.parquet: its pictures and labels, all in memory, would take .* GiB"):
        HierarchicalDataset.load(file, taxonomy)


def test_a_table_too_large_by_its_footer_is_not_decoded(tmp_path, taxonomy, monkeypatch):
    pq = pytest.importorskip("pyarrow.parquet")
    pa = pytest.importorskip("pyarrow")
    file = tmp_path / "bomb.parquet"
    columns = {"class": ["bird"] * 6, "family": ["owl"] * 6, "species": ["barn owl"] * 6}
    pq.write_table(pa.table({"image": [b"\0" * 2**20] * 6, **columns}), file, compression="zstd")
    monkeypatch.setattr("hcast_zoo.data.parquet.SMALL", 2**19)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *words, **options: pytest.fail("decoded"))

    with pytest.raises(ValueError, match="over 100 times as many"):
        HierarchicalDataset.load(file, taxonomy)


def test_a_dash_reads_the_list_from_standard_input(picture_folder, tiny_weights, tmp_path, capsys):
    """A pipe that is named on the command line is refused."""
    picture = next(str(p) for p in picture_folder.rglob("*.png"))
    (tmp_path / "list.txt").write_text(f"{picture}\n\n{picture}\n")
    before = os.dup(0)
    with open(tmp_path / "list.txt") as source:
        os.dup2(source.fileno(), 0)
    try:
        assert main(["predict", "--files-from", "-", "--model", str(tiny_weights)]) == 0
    finally:
        os.dup2(before, 0)
        os.close(before)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_deleted_current_folder_is_reported(tmp_path, tiny_weights):
    (tmp_path / "gone").mkdir()
    code = (
        f"import os; from hcast_zoo.cli import main; os.rmdir({str(tmp_path / 'gone')!r}); "
        f"raise SystemExit(main(['info', {str(tiny_weights)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "gone", capture_output=True, text=True)
    assert done.returncode == 2 and "the current folder has been deleted" in done.stderr


def test_very_long_lines_and_too_many_columns_are_refused(tmp_path, taxonomy, monkeypatch):
    monkeypatch.setattr("hcast_zoo.taxonomy.sources.MAX_LINE", 100_000)
    for name, text, message in (
        ("t.csv", "file,class,family,species\n" + "x" * 200_000, "lines of 100,000 characters at most"),
        ("t.jsonl", '{"file": "' + "x" * 200_000, "lines of 100,000 characters at most"),
        ("t.csv", ",".join(map(str, range(10_001))), "10,000 columns at most, got 10,001"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            HierarchicalDataset.load(tmp_path / name, taxonomy)


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["2>&-", "<&-", "2>&- <&-"])
def test_closed_streams_do_not_stop_predictions(tiny_weights, picture_folder, tmp_path, closed):
    pictures = sorted(map(str, (picture_folder / "val").rglob("*.png")))[:2]
    (tmp_path / "empty.png").touch()
    words = ["predict", *pictures, str(tmp_path / "empty.png"), "--model", str(tiny_weights), "--json"]
    command = f"exec {shlex.join([sys.executable, '-m', 'hcast_zoo', *words])} {closed}"
    result = subprocess.run(["bash", "-c", command], stdout=subprocess.PIPE, text=True, timeout=120, check=False)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.returncode == 1 and len(rows) == 3 and "error" in rows[2] and "path" in rows[0]


def test_warnings_about_skipped_pictures_hold_no_control_characters(tmp_path, taxonomy):
    bad = tmp_path / "a\x1b[2J.png"
    bad.write_bytes(b"no picture")
    data = HierarchicalDataset([bad], [["bird", "owl", "barn owl"]], taxonomy)
    with pytest.warns(UserWarning, match="left out") as caught:
        assert data[0] is None
    assert str(caught[0].message).isprintable()


@pytest.mark.parametrize("interface, package", [("core", "torch"), ("timm", "timm"), ("mmpretrain", "mmpretrain")])
def test_a_changed_config_builds_a_model_or_is_refused(tmp_path, interface, package, monkeypatch):
    """tests/attacks/configs.py tries thousands with every framework, and measures their memory."""
    pytest.importorskip(package)
    pytest.importorskip("pyarrow")  # tests.attacks.readers imports it
    from tests.attacks.interfaces import INTERFACES

    monkeypatch.setenv("HCAST_ZOO_MEMORY_GIB", "0.1")
    reader = INTERFACES[interface](tmp_path)
    reader.warm()
    refused = 0
    for number in range(40):
        try:
            reader.read(reader.make(random.Random(number)))
        except reader.clear as error:
            refused += 1
            assert 5 <= len(str(error)) <= 4000
    assert 0 < refused < 40
