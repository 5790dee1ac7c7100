"""Mutations of good input: of bytes, and of plain data as in JSON. All randomness comes from a random.Random."""

import copy
import random
import struct
import zlib
from collections.abc import Sequence
from typing import Any

# What readers trip over: extreme numbers, markup, terminal escapes, paths out of a folder, invalid text.
HOSTILE: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    7,
    255,
    65537,
    10**6,
    10**9,
    2**31 - 1,
    2**31,
    2**63,
    10**30,
    -(2**63),
    0.5,
    -0.0,
    1e-300,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    "",
    " ",
    "0",
    "-1",
    "nan",
    "true",
    "\0",
    "a\0b",
    "\x1b[31mred\x1b]0;title\x07",
    "\x9b31m",
    "\u202egnp",
    "\ud800",
    "../../../etc/passwd",
    "/etc/passwd",
    "C:\\x",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}{% raw %}",
    "`rm -rf`|x|\n# head",
    "__import__('os').system('x')",
    "!!python/object/apply:os.system [x]",
    "%s%n{0}",
    "é" * 300,
    "a" * 70_000,
    "\N{ZERO WIDTH JOINER}",
    "=1+1",
    "a\nb",
    "a,b",
    "a\tb",
    "\ufeff",
    [],
    {},
    [[]],
    [None],
    [1, [2, [3]]],
    {"": None},
    {"a": {"b": []}},
    ["x"] * 1000,
    list(range(500)),
)
EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def mutate_bytes(data: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """Return data after one to six changes: bits, numbers, pieces cut, moved, repeated, or taken from others."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        kind, at = rng.randrange(9), rng.randrange(len(out) + 1)
        length = min(rng.choice((1, 2, 4, 16, 64, 1024)), len(out))
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at : at + length] = rng.randbytes(length)
        elif kind == 2:  # a number, at the beginning (where sizes are) or anywhere
            at = min(at, rng.choice((64, 10**9)))
            width, order = rng.choice(("B", "H", "I", "Q")), rng.choice("<>")
            value = rng.choice(EDGES) & (256 ** struct.calcsize(width) - 1)
            out[at : at + struct.calcsize(width)] = struct.pack(order + width, value)
        elif kind == 3:
            del out[at : at + length]
        elif kind == 4:
            out[at:at] = out[at : at + length] * rng.choice((1, 1, 8))
        elif kind == 5:
            del out[at:]
        elif kind == 6 and others:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            out[at : at + length] = other[start : start + length]
        elif kind == 7:
            out[at:at] = rng.randbytes(length)
        elif kind == 8:
            out[at : at + length] = bytes([rng.choice((0, 0xFF, 0x20, 0x22))]) * length
    return bytes(out)


def mutate_plain(value: Any, rng: random.Random) -> Any:
    """Return plain data after one to three changes at random places: replaced, removed, repeated, renamed, swapped."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        holders = _holders(value)
        if not holders:
            return rng.choice(HOSTILE)
        # Choose the depth first; otherwise long lists would leave hardly any changes to the few fields at the top.
        depth = rng.choice(sorted({d for d, _ in holders}))
        holder = rng.choice([h for d, h in holders if d == depth])
        key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        kind = rng.randrange(8)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[str(rng.choice(HOSTILE))] = holder.pop(key)
        elif kind == 1:
            holder.insert(key, copy.deepcopy(holder[key]))
        elif kind == 2:
            holder[key] = [holder[key]]
        elif kind == 3 and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
            holder[key] = rng.choice((holder[key] + 1, -holder[key], holder[key] * 10**9, holder[key] * 0.37))
        elif kind == 4 and isinstance(holder[key], str):
            holder[key] = holder[key] + str(rng.choice(HOSTILE))
        elif kind == 5 and isinstance(holder, list):
            rng.shuffle(holder)
        else:
            holder[key] = copy.deepcopy(rng.choice(HOSTILE))
    return value


def _holders(value: Any, depth: int = 0) -> list[tuple[int, dict | list]]:
    children = ()
    if isinstance(value, dict):
        children = value.values()
    elif isinstance(value, list):
        children = value
    holders = [(depth, value)] if isinstance(value, (dict, list)) and value else []
    for child in children:
        if isinstance(child, (dict, list)):
            holders += _holders(child, depth + 1)
    return holders


def mutate_text(text: str, rng: random.Random) -> str:
    """Return text after one to four changes of lines, cells and words, hostile ones among them."""
    lines = text.split("\n")
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(lines))
        cells = lines[at].split(",")
        kind, cell = rng.randrange(7), rng.randrange(len(cells))
        if kind == 0:
            cells[cell] = str(rng.choice(HOSTILE))
        elif kind == 1:
            del cells[cell]
        elif kind == 2:
            cells.insert(cell, rng.choice(('"', '""', "x", "", "'")))
        elif kind == 3:
            cells[cell] = rng.choice((cells[cell] * 3, f'"{cells[cell]}', cells[cell] + "\r", " " + cells[cell]))
        elif kind == 4:
            rng.shuffle(cells)
        elif kind == 5:
            cells = rng.choice(lines).split(",")
        lines[at : at + (kind != 6)] = [",".join(cells)]
    return "\n".join(lines)


def mutate_png(data: bytes, rng: random.Random) -> bytes:
    """Return a PNG file with chunks changed, removed, repeated or moved, and correct checksums."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += length + 12
    for _ in range(rng.choice((1, 1, 2, 3))):
        if not chunks:
            break
        i = rng.randrange(len(chunks))
        kind, (name, body) = rng.randrange(6), chunks[i]
        if kind == 0:
            del chunks[i]
        elif kind == 1:
            chunks.insert(rng.randrange(len(chunks)), chunks[i])
        elif kind == 2:
            chunks[i] = name, mutate_bytes(body, rng)
        elif kind == 3:
            chunks[i] = rng.choice((b"IDAT", b"PLTE", b"tRNS", b"iCCP", b"zTXt", b"eXIf", b"acTL", b"sBIT")), body
        elif kind == 4 and name == b"IHDR" and len(body) == 13:
            size = [rng.choice((0, 1, 3, 9_999, 10_001, 65_535, 2**31 - 1)) for _ in range(2)]
            bits, colour = rng.choice((1, 2, 4, 8, 16, 3)), rng.choice((0, 2, 3, 4, 6, 1))
            chunks[i] = name, struct.pack(">IIBB", *size, bits, colour) + body[10:]
        elif kind == 5:  # a few bytes that unpack to many
            chunks.insert(i, (b"zTXt", b"k\0\0" + zlib.compress(b"0" * 10**6)))
    out = data[:8]
    for name, body in chunks:
        out += len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")
    return out
