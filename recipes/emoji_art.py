"""Build EmojiArt: 826 emoji < 47 subgroups < 5 groups, drawn by nine artists, from open artwork on npm.

    pip install 'hcast-zoo[train]' resvg-py        # and the npm client
    python recipes/emoji_art.py --output data/emoji_art

Writes ``emoji_art.parquet`` (columns split, artist, codepoint, group, subgroup, emoji, image: 96x96 WebP with alpha),
``taxonomy.json`` and ``ATTRIBUTION.md``. Pictures of seven artists are to train on, those of one (Firefox OS) to
validate, and those of one (Twemoji) to test. Takes about a minute. Two builds with the same library versions give the
same bytes.

Known label noise: artists sometimes draw different things for one code point (a "water pistol" was a revolver).
Unicode's subgroups go by meaning, not always by looks.
"""

import argparse
import collections
import hashlib
import io
import json
import re
import subprocess
import tarfile
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import resvg_py
from PIL import Image

from hcast_zoo.taxonomy.tree import Taxonomy

# npm package @iconify-json/NAME: version, split, attribution, licence (SPDX), sha256 of the tarball
ARTWORK = {
    "noto": (
        "1.2.9",
        "train",
        "Noto Emoji, (c) Google Inc, github.com/googlefonts/noto-emoji",
        "Apache-2.0",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    ),
    "noto-v1": (
        "1.2.5",
        "train",
        "Noto Emoji v1, (c) Google Inc, github.com/googlefonts/noto-emoji",
        "Apache-2.0",
        "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
    ),
    "fluent-emoji-flat": (
        "1.2.6",
        "train",
        "Fluent Emoji, (c) Microsoft Corporation, github.com/microsoft/fluentui-emoji",
        "MIT",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    ),
    "fluent-emoji": (
        "1.2.7",
        "train",
        "Fluent Emoji, (c) Microsoft Corporation, github.com/microsoft/fluentui-emoji",
        "MIT",
        "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
    ),
    "emojione": (
        "1.2.3",
        "train",
        "Emoji One v2 / EmojiTwo, github.com/EmojiTwo/emojitwo",
        "CC-BY-4.0",
        "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
    ),
    "emojione-v1": (
        "1.2.3",
        "train",
        "Emoji One v1, github.com/joypixels/emojione-legacy",
        "CC-BY-SA-4.0",
        "6641d59d48a42823fdc2b84e7427e9f302944eb98d2c7d94d6e67c139e7b37b3",
    ),
    "openmoji": (
        "1.2.29",
        "train",
        "OpenMoji, (c) HfG Schwaebisch Gmuend, github.com/hfg-gmuend/openmoji",
        "CC-BY-SA-4.0",
        "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
    ),
    "fxemoji": (
        "1.2.2",
        "val",
        "Firefox OS Emoji, (c) Mozilla, github.com/mozilla/fxemoji",
        "Apache-2.0",
        "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
    ),
    "twemoji": (
        "1.2.5",
        "test",
        "Twemoji, (c) Twitter and contributors, github.com/jdecked/twemoji",
        "CC-BY-4.0",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
    ),
}
EMOJIBASE = ("emojibase-data", "17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a")
GROUPS = ("animals-nature", "food-drink", "travel-places", "activities", "objects")
CLOCK_FACES = range(0x1F550, 0x1F568)  # left out: they differ in the angle of the hands alone
MIN_TRAIN_ARTISTS = 3  # an emoji needs that many
MIN_LEAVES = 3  # a subgroup needs that many
SIZE = 96  # pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the data set")
    parser.add_argument("--cache", type=Path, help="folder for downloads (default: OUTPUT/npm)")
    args = parser.parse_args()

    args.output.mkdir(parents=True, exist_ok=True)
    cache = args.cache or args.output / "npm"
    cache.mkdir(parents=True, exist_ok=True)
    labels = read_labels(fetch(*EMOJIBASE, cache))
    icons = {}
    for name, (version, *_, sha256) in ARTWORK.items():
        icons[name] = read_icons(fetch(f"@iconify-json/{name}", version, sha256, cache))

    drawn = match_icons(labels, icons)
    kept = choose_emoji(labels, drawn)
    taxonomy = Taxonomy.from_paths([labels[code] for code in kept], ("group", "subgroup", "emoji"), "EmojiArt")
    taxonomy.save(args.output / "taxonomy.json")
    table = render(labels, icons, drawn, kept)
    pq.write_table(table, args.output / "emoji_art.parquet", compression="zstd")

    lines = ["# EmojiArt", ""]
    for name, (version, split, credit, licence, _) in ARTWORK.items():
        lines.append(f"- {split}: {credit} ({licence}), npm @iconify-json/{name} {version}")
    lines.append("- taxonomy: emojibase-data 17.0.0, (c) Miles Johnson (MIT)")
    lines += ["", "Changes: rendered to 96x96 pixels, re-encoded as WebP.", ""]
    (args.output / "ATTRIBUTION.md").write_text("\n".join(lines))
    print(dict(collections.Counter(table["split"].to_pylist())), "levels", taxonomy.level_classes)


def fetch(package: str, version: str, sha256: str, cache: Path) -> Path:
    """Download a package with ``npm pack``, which runs none of its scripts, verify and unpack it."""
    name = f"{package.lstrip('@').replace('/', '-')}-{version}"
    archive = cache / f"{name}.tgz"
    if not archive.exists():
        subprocess.run(
            ["npm", "pack", "--silent", f"{package}@{version}"], cwd=cache, check=True, stdout=subprocess.DEVNULL
        )

    checksum = hashlib.sha256(archive.read_bytes()).hexdigest()
    if checksum != sha256:
        raise SystemExit(f"{archive.name}: expected sha256 {sha256}, got {checksum}: delete it and run again")

    if not (cache / name).exists():
        with tarfile.open(archive) as tar:
            tar.extractall(cache / name, filter="data")

    return cache / name / "package"


def read_labels(package: Path) -> dict[str, tuple[str, str, str]]:
    """Return code point to (group, subgroup, emoji), in Unicode's order."""
    records = json.loads((package / "en/data.json").read_text())
    meta = json.loads((package / "meta/groups.json").read_text())
    labels = {}
    for record in sorted((r for r in records if "group" in r), key=lambda r: r.get("order", 0)):
        code = record["hexcode"].replace("-FE0F", "")
        group, subgroup = meta["groups"][str(record["group"])], meta["subgroups"][str(record["subgroup"])]
        is_clock_face = "-" not in code and int(code, 16) in CLOCK_FACES
        if group in GROUPS and not is_clock_face:
            labels[code] = (group, subgroup, record["label"])

    return labels


def read_icons(package: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return icon name to SVG text, and code point to icon name (empty for sets without code points)."""
    data = json.loads((package / "icons.json").read_text())
    width, height = data.get("width", 16), data.get("height", 16)
    svgs = {}
    for name, icon in data["icons"].items():
        box = [icon.get("left", 0), icon.get("top", 0), icon.get("width", width), icon.get("height", height)]
        svgs[name] = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{" ".join(map(str, box))}">{icon["body"]}</svg>'
        )

    for name, alias in data.get("aliases", {}).items():
        if set(alias) == {"parent"} and alias["parent"] in svgs:  # an alias may also rotate or flip: left out
            svgs.setdefault(name, svgs[alias["parent"]])

    codes = json.loads((package / "chars.json").read_text())
    return svgs, {code.upper().replace("-FE0F", ""): name for code, name in codes.items()}


def match_icons(labels: dict, icons: dict) -> dict[str, dict[str, str]]:
    """Return, for each artist, code point to icon name: by code point, else by a name that other sets use."""
    code_of_name: dict[str, str] = {}
    for code, (*_, label) in labels.items():
        code_of_name.setdefault(squash(label), code)

    for code in labels:
        if "-" not in code:
            code_of_name.setdefault(squash(unicodedata.name(chr(int(code, 16)), "")) or code, code)

    for _, codes in icons.values():
        for code, name in codes.items():
            if code in labels:
                code_of_name.setdefault(squash(name), code)

    drawn = {}
    for artist, (svgs, codes) in icons.items():
        matches = {code: name for code, name in codes.items() if code in labels and name in svgs}
        for name in svgs:
            if code := code_of_name.get(squash(name)):
                matches.setdefault(code, name)

        uses = collections.Counter(svgs[name] for name in matches.values())
        # One drawing for two emoji is a mistaken alias: keep neither.
        drawn[artist] = {code: name for code, name in matches.items() if uses[svgs[name]] == 1}

    return drawn


def choose_emoji(labels: dict, drawn: dict) -> list[str]:
    """Return the code points that enough artists drew, in subgroups that are large enough."""
    artists = collections.defaultdict(list)
    for artist, (_, split, *_) in ARTWORK.items():
        artists[split].append(artist)

    kept = []
    for code in labels:
        in_test = all(code in drawn[artist] for artist in artists["test"])
        if in_test and sum(code in drawn[artist] for artist in artists["train"]) >= MIN_TRAIN_ARTISTS:
            kept.append(code)

    count = collections.Counter(labels[code][:2] for code in kept)
    kept = [code for code in kept if count[labels[code][:2]] >= MIN_LEAVES]
    return sorted(kept, key=lambda code: GROUPS.index(labels[code][0]))  # stable: Unicode's order inside a group


def render(labels: dict, icons: dict, drawn: dict, kept: list[str]) -> pa.Table:
    """Draw every emoji of every artist; a picture that cannot be drawn, or is blank, stops the build."""
    columns = collections.defaultdict(list)
    for artist, (_, split, *_) in ARTWORK.items():
        for code in kept:
            if code not in drawn[artist]:
                continue

            picture = draw(icons[artist][0][drawn[artist][code]])
            if sum(picture.getchannel("A").histogram()[1:]) == 0:
                raise SystemExit(f"{artist} {drawn[artist][code]}: blank picture")

            file = io.BytesIO()
            picture.save(file, "WEBP", quality=90, method=4)
            group, subgroup, emoji = labels[code]
            row = dict(
                split=split,
                artist=artist,
                codepoint=code,
                group=group,
                subgroup=subgroup,
                emoji=emoji,
                image=file.getvalue(),
            )
            for key, value in row.items():
                columns[key].append(value)

    return pa.table(dict(columns))


def draw(svg: str) -> Image.Image:
    """Return a SIZE x SIZE RGBA picture, padded if the artwork is not square."""
    png = resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE, skip_system_fonts=True)
    picture = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    if picture.size == (SIZE, SIZE):
        return picture

    picture.thumbnail((SIZE, SIZE))
    square = Image.new("RGBA", (SIZE, SIZE))
    square.paste(picture, ((SIZE - picture.width) // 2, (SIZE - picture.height) // 2))
    return square


def squash(name: str) -> str:
    """Return a name in lower-case ASCII letters and digits alone."""
    name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]", "", name.lower())


if __name__ == "__main__":
    main()
