"""Build Fashion-MNIST along a tree: 10 articles < 6 categories < 2 kinds, 70,000 grey product photographs of 28x28.

    pip install 'hcast-zoo[train]'
    python recipes/fashion_mnist.py --output data/fashion_mnist

Writes ``fashion_mnist.parquet`` (columns split, kind, category, article, image: PNG), ``taxonomy.json`` and
``ATTRIBUTION.md``. The pictures come from Debian's package dataset-fashion-mnist (MIT): installed, or fetched with
``apt-get download``, which needs no root; or from the four IDX files of Zalando's repository (``--source FOLDER``),
which are the same bytes. The last 500 training pictures of each article are for validation; the test set is the
official one. Takes half a minute.

The tree is that of Seo and Shin, "Hierarchical convolutional neural networks for fashion image classification", Expert
Systems with Applications 116 (2019), as others' code has it: we had no copy of the article to compare with.
"""

import argparse
import collections
import gzip
import hashlib
import io
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from hcast_zoo.taxonomy.tree import Taxonomy

PACKAGE = "dataset-fashion-mnist"
INSTALLED = Path("usr/share/datasets/fashion-mnist")
LEVELS = ("kind", "category", "article")
PATHS = (  # in the order of the data set's labels, 0 to 9
    ("Clothes", "Tops", "T-shirt/top"),
    ("Clothes", "Bottoms", "Trouser"),
    ("Clothes", "Tops", "Pullover"),
    ("Clothes", "Dresses", "Dress"),
    ("Clothes", "Outers", "Coat"),
    ("Goods", "Shoes", "Sandal"),
    ("Clothes", "Tops", "Shirt"),
    ("Goods", "Shoes", "Sneaker"),
    ("Goods", "Accessories", "Bag"),
    ("Goods", "Shoes", "Ankle boot"),
)
VAL_EACH = 500  # pictures of each article, the last of the training set
SHA256 = {  # of the unpacked IDX files; gzip may pack the same bytes in many ways
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
ATTRIBUTION = """# Fashion-MNIST

Copyright (c) 2017 Zalando SE, https://tech.zalando.com; MIT; github.com/zalandoresearch/fashion-mnist.

Changes: stored as PNG, with a tree of labels, and 5,000 training pictures set apart for validation.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the data set")
    parser.add_argument(
        "--source", type=Path, help="folder with the four IDX files, packed (.gz) or not (default: Debian's package)"
    )
    args = parser.parse_args()

    args.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        source = args.source or find_package(Path(scratch))
        train, test = (read_part(source, part) for part in ("train", "t10k"))

    taxonomy = Taxonomy.from_paths(PATHS, LEVELS, "Fashion-MNIST")
    taxonomy.save(args.output / "taxonomy.json")
    table = make_table(train, test)
    pq.write_table(table, args.output / "fashion_mnist.parquet", compression="zstd")
    (args.output / "ATTRIBUTION.md").write_text(ATTRIBUTION)
    print(dict(collections.Counter(table["split"].to_pylist())), "levels", taxonomy.level_classes)


def find_package(scratch: Path) -> Path:
    """Return the folder of the package's files, installed or unpacked into ``scratch``."""
    if (Path("/") / INSTALLED).is_dir():
        return Path("/") / INSTALLED
    try:
        subprocess.run(["apt-get", "download", "-q", PACKAGE], cwd=scratch, check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["dpkg-deb", "-x", next(scratch.glob(f"{PACKAGE}_*.deb")), scratch], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"cannot fetch Debian's {PACKAGE}: {error}; give its four IDX files with --source") from error
    return scratch / INSTALLED


def read_part(source: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the (S, 28, 28) uint8 pictures and (S,) uint8 labels of ``train`` or ``t10k``."""
    return tuple(read_idx(source, f"{part}-{name}-ubyte") for name in ("images-idx3", "labels-idx1"))


def read_idx(source: Path, name: str) -> np.ndarray:
    """Return the array of an IDX file of bytes, after checking its checksum."""
    packed = source / f"{name}.gz"
    if not packed.exists() and not (source / name).exists():
        raise SystemExit(f"{source}: expected {name} or {name}.gz")

    data = gzip.decompress(packed.read_bytes()) if packed.exists() else (source / name).read_bytes()
    checksum = hashlib.sha256(data).hexdigest()
    if checksum != SHA256[name]:
        raise SystemExit(f"{source / name}: expected sha256 {SHA256[name]} (unpacked), got {checksum}")

    # Two zero bytes, the type (8 is uint8), the number of dimensions, and each dimension as a big-endian int32.
    shape = np.frombuffer(data, ">i4", count=data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def make_table(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> pa.Table:
    """Return the rows of all splits, in the data set's order."""
    splits = np.full(len(train[1]), "train")
    for article in range(len(PATHS)):
        splits[np.flatnonzero(train[1] == article)[-VAL_EACH:]] = "val"

    columns = collections.defaultdict(list)
    for (pictures, labels), parts in ((train, splits), (test, ["test"] * len(test[1]))):
        for picture, label, split in zip(pictures, labels.tolist(), parts):
            file = io.BytesIO()
            Image.fromarray(picture).save(file, "PNG")
            row = dict(split=str(split), **dict(zip(LEVELS, PATHS[label])), image=file.getvalue())
            for key, value in row.items():
                columns[key].append(value)

    return pa.table(dict(columns))


if __name__ == "__main__":
    main()
