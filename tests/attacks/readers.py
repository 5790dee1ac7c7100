"""The readers of `fuzz.py`: each makes an input from a random.Random, reads it, and checks the answer.

``read`` returns if the answer is right, raises an error if the input is refused, and raises WrongAnswer otherwise.
``clear`` lists the types of a reader's clear errors, which the package's own code raises with its own messages.
"""

import contextlib
import io
import json
import random
import re
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from hcast_zoo import cli
from hcast_zoo.data.dataset import HierarchicalDataset
from hcast_zoo.data.pictures import PictureError, read_picture
from hcast_zoo.data.transforms import eval_transform
from hcast_zoo.inference.predictor import Predictor
from hcast_zoo.network.model import HCast
from hcast_zoo.taxonomy.sources import TaxonomyError
from hcast_zoo.taxonomy.tree import UNKNOWN, Taxonomy
from hcast_zoo.weights.file import Calibration, HCastConfig, WeightsError, build_model, load_weights, save_weights
from tests.attacks.mutations import HOSTILE, mutate_bytes, mutate_plain, mutate_png, mutate_text
from tests.tiny import LEVELS, TREE, draw, make_pictures, make_tree, make_weights

MESSAGE = 4000  # the most characters of an error that anybody will read
JOINERS = "\u200c\u200d"


class WrongAnswer(Exception):
    """A reader accepted the input, but its result is wrong."""


def expect(fine: bool, what: str) -> None:
    if not fine:
        raise WrongAnswer(what)


class Reader:
    """One entry point for data from outside.

    Args:
        folder: Where input and output files may be written.
    """

    what: str
    clear: tuple[type[Exception], ...]
    foreign = False  # whether a framework's own messages count as clear too

    def __init__(self, folder: Path):
        self.folder = folder

    def make(self, rng: random.Random) -> Any:
        raise NotImplementedError

    def read(self, source: Any) -> None:
        raise NotImplementedError

    def warm(self) -> None:
        """Import what good input needs, before processes are forked."""


class Pictures(Reader):
    """Files of every common format, changed by bits, pieces and, in PNG, chunks with right checksums."""

    what, clear = "picture files", (PictureError,)

    def __init__(self, folder: Path):
        super().__init__(folder)
        rgb = draw(0, 30)
        alpha = rgb.copy()
        alpha.putalpha(rgb.convert("L"))
        exif = Image.Exif()
        exif[0x0112] = 6
        noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8))
        self.png = [
            save(p, "PNG")
            for p in (rgb, alpha, rgb.quantize(8), noise, noise.convert("1"), noise.convert("I").convert("I;16"))
        ]
        self.seeds = [
            *self.png,
            save(rgb, "JPEG", exif=exif),
            save(rgb.convert("CMYK"), "JPEG"),
            save(noise, "JPEG", progressive=True),
            save(rgb, "WEBP", lossless=True),
            save(alpha, "WEBP"),
            save(rgb, "BMP"),
            save(noise, "PPM"),
            save(rgb.quantize(8), "GIF", save_all=True, append_images=[draw(1, 30).quantize(8)]),
            save(noise.convert("F"), "TIFF"),
            save(rgb, "AVIF"),
            save(rgb, "JPEG2000"),
            save(rgb, "ICO"),
            *(save(rgb, "TIFF", compression=c) for c in ("raw", "tiff_lzw", "tiff_deflate", "jpeg", "packbits")),
            *(save(rgb, kind) for kind in ("TGA", "PCX", "SGI", "DDS", "QOI", "ICNS") if kind in Image.SAVE),
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n",
        ]
        self.transform = eval_transform(HCastConfig(image_size=32, num_superpixels=16, num_clusters=(8, 4, 2, 2)))

    def make(self, rng: random.Random) -> bytes:
        if rng.random() < 0.3:
            return mutate_png(rng.choice(self.png), rng)
        return mutate_bytes(rng.choice(self.seeds), rng, self.seeds)

    def read(self, source: bytes) -> None:
        file = self.folder / "picture"
        file.write_bytes(source)
        picture = read_picture(file)
        expect(picture.mode == "RGB" and picture.width * picture.height > 0, "no RGB picture")
        if max(picture.size) < 50 * min(picture.size):  # longer pictures are cropped
            image = self.transform(picture)
            expect(image.shape == (3, 32, 32) and bool(image.isfinite().all()), "no finite tensor")


class Taxonomies(Reader):
    """JSON, CSV and lists of paths, changed by fields, cells and bytes."""

    what, clear = "taxonomies (JSON, CSV)", (TaxonomyError,)

    def __init__(self, folder: Path):
        super().__init__(folder)
        good = Taxonomy.from_paths([*TREE, ("rock",)], LEVELS, "animals")
        self.plain, self.json = good.to_dict(), json.dumps(good.to_dict())
        self.csv = "\n".join([",".join(LEVELS), *(",".join(path) for path in TREE), "rock,,"])

    def make(self, rng: random.Random) -> tuple[str, bytes]:
        kind = rng.randrange(5)
        if kind == 0:
            return "t.json", mutate_bytes(self.json.encode(), rng)
        if kind == 1:
            return "t.csv", mutate_bytes(self.csv.encode(), rng)
        if kind == 2:
            return "t.csv", mutate_text(self.csv, rng).encode("utf-8", "surrogatepass")
        text = json.dumps(mutate_plain(self.plain, rng), ensure_ascii=rng.random() < 0.5)
        return "t.json", text.encode("utf-8", "surrogatepass")

    def read(self, source: tuple[str, bytes]) -> None:
        file = self.folder / source[0]
        file.write_bytes(source[1])
        check_taxonomy(Taxonomy.load(file), self.folder / "copy.json")


def check_taxonomy(t: Taxonomy, copy: Path) -> None:
    """Check that a taxonomy is a tree, and survives being written."""
    t.save(copy)
    expect(Taxonomy.load(copy) == t, "another taxonomy after being written and read")
    expect(all(1 <= len(level) == len(set(level)) for level in t.names), "a level without nodes, or a name twice")
    for path in t.paths[:50]:
        names = t.path_names(path)
        expect(t.labels(names) == path, f"labels of {names!r}")
        expect(all(known == UNKNOWN or t.names[level][known] for level, known in enumerate(path)), "no name")


class WeightFiles(Reader):
    """safetensors files whose header, config, taxonomy and calibration are changed, by fields and by bytes."""

    what, clear = "weights: safetensors, config, calibration", (WeightsError,)

    def __init__(self, folder: Path):
        super().__init__(folder)
        weights = load_weights(make_weights(folder / "good.safetensors"))
        weights.calibration = Calibration((1.0, 1.5, 2.0), 1.2, "val")
        save_weights(weights, folder / "good.safetensors")
        self.good = (folder / "good.safetensors").read_bytes()
        self.end = 8 + int.from_bytes(self.good[:8], "little")
        self.header = json.loads(self.good[8 : self.end])
        self.picture = draw(0)
        self.segments = None

    def make(self, rng: random.Random) -> tuple[str, bytes]:
        kind, header = rng.randrange(10), json.loads(json.dumps(self.header))
        meta = header["__metadata__"]
        if kind == 0:
            return "w.safetensors", mutate_bytes(self.good[: self.end], rng) + self.good[self.end :]
        if kind == 1:
            return "w.safetensors", mutate_bytes(self.good, rng)
        if kind == 2:
            header = mutate_plain(header, rng)
        elif kind == 3:
            tensors = {k: v for k, v in header.items() if k != "__metadata__"}
            header = {"__metadata__": meta, **mutate_plain(tensors, rng)}
        elif kind == 4:
            name = rng.choice([k for k in header if k != "__metadata__"])
            header[name]["dtype"] = rng.choice(
                ("F16", "BF16", "F64", "I32", "I64", "BOOL", "U8", "F8_E4M3", "F8_E5M2", "U16", "U64", "F4", "X")
            )
        else:
            field = ("config", "config", "config", "taxonomy", "calibration")[kind - 5]
            value = json.loads(meta[field])
            meta[field] = (
                mutate_bytes(meta[field].encode(), rng).decode("latin1")
                if rng.random() < 0.2
                else json.dumps(mutate_plain(value, rng))
            )
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        return "w.safetensors", len(text).to_bytes(8, "little") + text + self.good[self.end :]

    def read(self, source: tuple[str, bytes]) -> None:
        file = self.folder / source[0]
        file.write_bytes(source[1])
        weights = load_weights(file)
        model = build_model(weights)
        expect(isinstance(model, HCast) and weights.config == model.config, "no model of the config")
        if weights.taxonomy is None:
            return
        picture = self.folder / "p.png"
        self.picture.save(picture)
        (answer,) = Predictor(file).predict([picture])
        if answer.error is None:
            numbers = (*answer.probabilities, answer.path_probability, answer.runner_up_probability)
            expect(all(0 <= p <= 1 + 1e-6 for p in numbers), f"probabilities {numbers}")
            labels = weights.taxonomy.labels(answer.path)
            expect(UNKNOWN not in labels or len(answer.path) < len(labels), "a path outside the tree")


class Tables(Reader):
    """Data sets as CSV, JSONL and parquet, changed by cells, columns and bytes."""

    what, clear = "data sets: CSV, JSONL, parquet", (ValueError,)

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.taxonomy = Taxonomy.from_paths(TREE, LEVELS, "animals")
        files = [Path(f).name for f in make_pictures(folder, len(TREE))]
        rows = [(f, *path, "train") for f, path in zip(files, TREE)]
        self.csv = "\n".join(",".join(row) for row in [("file", *LEVELS, "split"), *rows])
        self.rows = [{"file": f, "path": list(path), "split": "train"} for f, path in zip(files, TREE)]
        self.jsonl = "\n".join(map(json.dumps, self.rows))
        self.columns = {
            "image": [(folder / f).read_bytes() for f in files],
            **{level: [path[i] for path in TREE] for i, level in enumerate(LEVELS)},
            "split": ["train"] * len(TREE),
        }
        self.parquet = [parquet(self.columns, compression=c) for c in ("zstd", "snappy", "NONE")]

    def make(self, rng: random.Random) -> tuple[str, bytes, bool, str | None]:
        kind, known, split = rng.randrange(7), rng.random() < 0.5, rng.choice((None, "train"))
        if kind == 0:
            return "t.csv", mutate_bytes(self.csv.encode(), rng), known, split
        if kind == 1:
            return "t.csv", mutate_text(self.csv, rng).encode("utf-8", "surrogatepass"), known, split
        if kind == 2:
            return "t.jsonl", mutate_bytes(self.jsonl.encode(), rng), known, split
        if kind == 3:
            rows = [mutate_plain(row, rng) if rng.random() < 0.4 else row for row in self.rows]
            return "t.jsonl", "\n".join(map(json.dumps, rows)).encode(), known, split
        if kind == 4:
            return "t.parquet", mutate_table(self.columns, rng), known, split
        return "t.parquet", mutate_bytes(rng.choice(self.parquet), rng, self.parquet), known, split

    def read(self, source: tuple[str, bytes, bool, str | None]) -> None:
        name, data, known, split = source
        file = self.folder / name
        file.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pictures that are left out
            data_set = HierarchicalDataset.load(file, self.taxonomy if known else None, split)
            sizes = torch.tensor(data_set.taxonomy.level_classes)
            labels = data_set.labels
            expect(labels.shape == (len(data_set), len(sizes)), "labels of another shape")
            expect(bool(((labels >= UNKNOWN) & (labels < sizes)).all()), "labels out of range")
            for index in range(min(len(data_set), 3)):
                item = data_set[index]
                expect(item is None or item[0].mode == "RGB", "no picture")


def parquet(columns: dict[str, list], **options) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, **options)
    return sink.getvalue()


def mutate_table(columns: dict[str, list], rng: random.Random) -> bytes:
    """Return a parquet file with a column removed, renamed, of another type, or with other values."""
    while True:
        changed = dict(columns)
        name = rng.choice(list(changed))
        kind = rng.randrange(5)
        if kind == 0:
            del changed[name]
        elif kind == 1:
            changed[str(rng.choice(HOSTILE))] = changed.pop(name)
        elif kind == 2:
            changed[name] = [rng.choice(HOSTILE)] * len(changed[name])
        else:
            changed[name] = [rng.choice((v, None, rng.choice(HOSTILE))) for v in changed[name]]
        try:
            return parquet(changed)
        except (pa.ArrowException, OverflowError, UnicodeError, TypeError):  # cannot be written; try another
            continue


class CommandLine(Reader):
    """Arguments of every command, changed word by word; files named there are good, broken or missing.

    Training itself, building a graph, serving a page and sending to the Hub are left out: their arguments are checked,
    and the work is prepared but not done. Everything else runs.
    """

    what, clear = "the command line", (SystemExit,)

    def __init__(self, folder: Path):
        super().__init__(folder)
        model = str(make_weights(folder / "tiny.safetensors"))
        data = str(make_tree(folder / "tree"))
        good, bad = f"{data}/val/bird/owl/barn owl/0.png", str(folder / "bad\x1b[31m.png")
        Path(bad).write_bytes(b"no picture")
        (folder / "list.txt").write_bytes(f"{good}\n{bad}\nnowhere\x1b.png\n".encode() + b"\xff.png\n\n" + b"a" * 300)
        (folder / "config.py").write_text("model = 1")
        self.commands = [
            c.split("|")
            for c in (
                f"predict|{good}|--model|{model}|--json",
                f"predict|{good}|{bad}|--model|{model}|--within|bird|--back-off|0.5",
                f"predict|--files-from|{folder}/list.txt|--model|{model}|--decode|top_down|--batch-size|3",
                f"predict|{good}|--model|{model}|--output|OUT|--part-size|1|--num-clusters|4|2|1|1|--workers|0",
                f"segment|{good}|--output|OUT|--model|{model}|--write|arrays|labels|--json",
                f"evaluate|--data|{data}|--split|val|--model|{model}|--json|--decode|best_path|--device|cpu",
                f"adapt|{good}|--target|bird|--model|{model}|--steps|1|--step-size|0.1|--radius|0.2|--free|tokens",
                f"calibrate|{model}|--data|{data}|--output|OUT.safetensors|--split|val|--json",
                f"train|--data|{data}|--output|OUT|--model|{model}|--epochs|1|--batch-size|4|--workers|0|--lr|0.1|--seed|3",
                f"train|--data|{data}|--output|OUT|--model|hcast_tiny|--image-size|32|--num-superpixels|16|--num-clusters|8"
                "|4|2|1|--drop-path-rate|0.1|--crop-pct|0.9|--auto-augment||--mixup|0.2",
                f"convert|{folder}/tiny.safetensors|OUT.safetensors|--num-superpixels|16|--taxonomy|{data}",
                f"info|{model}|--json",
                "info|--json",
                f"export|{model}|--output|OUT.onnx|--batch-size|dynamic|--opset|18",
                f"publish|{model}|--repo|org/tiny|--dry-run|--output|OUT|--json|--preview|{good}|--tag|v1",
                "publish|org/tiny|--space|--repo|org/page|--dry-run|--requirement|hcast-zoo[demo]",
                f"demo|--model|{model}|--port|7861",
            )
        ]
        self.words = [w for c in self.commands for w in c]
        self._leave_out()

    def _leave_out(self) -> None:
        from hcast_zoo.demo import app as demo
        from hcast_zoo.sharing import export
        from hcast_zoo.training import trainer

        def check_only(source, path, *arguments, **options):
            build_model(load_weights(source))
            return export.Export(str(path), ("images",), ("logits",), None, 0.0)

        export.export = check_only
        trainer.Trainer.train = lambda self: 0.0
        demo.run = lambda *arguments, **options: None
        # The packaged weights take half a second to load. The parser reads the default when it is built.
        cli.options.add_model.__defaults__ = (str(self.folder / "tiny.safetensors"),)

    def warm(self) -> None:
        for words in self.commands:
            with contextlib.suppress(SystemExit):
                self.read([re.sub("^OUT", str(self.folder / "warm" / words[0]), word) for word in words])

    def make(self, rng: random.Random) -> list[str]:
        words = list(rng.choice(self.commands))
        for _ in range(rng.choice((1, 1, 2, 3))):
            at = rng.randrange(1 if rng.random() < 0.95 else 0, len(words) + 1)
            kind = rng.randrange(6)
            hostile = str(rng.choice(HOSTILE)).replace("\0", "")  # no operating system passes a NUL
            if kind == 0 and at < len(words):
                del words[at]
            elif kind == 1:
                words.insert(at, rng.choice(self.words))
            elif kind == 2 and at < len(words):
                words[at] = words[at] + hostile
            elif kind == 3 and at < len(words):
                words[at] = rng.choice(self.words)
            elif kind == 4:
                words.insert(at, hostile)
            elif at < len(words):
                words[at] = hostile
        # Whatever was changed, publishing sends nothing and there are few processes.
        for at in range(1, len(words)):
            if words[at - 1] == "--workers" and words[at].isdigit() and int(words[at]) > 2:
                words[at] = "2"
        words += ["--dry-run"] if words[:1] == ["publish"] and "--dry-run" not in words else []
        return [re.sub("^OUT", str(self.folder / "out" / str(rng.randrange(10**9))), word) for word in words]

    def read(self, source: list[str]) -> None:
        out, errors = (
            io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True, errors=mode)
            for mode in ("strict", "backslashreplace")
        )  # as Python opens stdout and stderr
        code = None
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors), contextlib.chdir(self.folder):
            try:
                code = cli.main(source)
            except SystemExit as stop:
                code = stop.code
        stdout, stderr = (x.buffer.getvalue().decode("utf-8") for x in (out, errors))
        expect(code in (0, 1, 2), f"exit code {code!r}")
        expect("Traceback" not in stderr, stderr[-2000:])
        expect(len(stderr) < 20 * MESSAGE, f"an error of {len(stderr)} characters")
        for name, text in (("stdout", stdout), ("stderr", stderr)):
            wild = [c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t\r"]
            expect(not wild, f"{wild[:3]!r} on {name}")
        if code:
            expect(bool(stderr.strip() or "--json" in source), f"exit code {code} without a word")
        if "--json" in source and code == 0 and "-h" not in source and "--help" not in source:
            for line in stdout.splitlines():
                json.loads(line, parse_constant=lambda name: expect(False, f"{name} in JSON"))
        if code == 2:
            raise SystemExit(stderr.strip().splitlines()[-1][:300])


def save(picture: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


READERS = {
    "picture": Pictures,
    "taxonomy": Taxonomies,
    "weights": WeightFiles,
    "tables": Tables,
    "command": CommandLine,
}
