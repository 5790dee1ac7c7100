"""Text that came from outside, in our words: what it holds of control characters and length must do no harm."""

import json
import reprlib
from typing import Any

_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = _brief.maxlong = 100
_brief.maxlist = _brief.maxtuple = _brief.maxdict = 8


def brief(value: Any) -> str:
    """Return the ``repr`` of a value, shortened so that an error that quotes it can be read."""
    return _brief.repr(value)


def clip(text: object, length: int = 500) -> str:
    """Return the beginning of a text, such as another package's error, which may quote all that it was given."""
    text = str(text)
    return text if len(text) <= length else f"{text[:length]} ..."


def printable(text: str) -> str:
    """Return text without control characters, which could write to the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def to_json(data: Any, indent: int | None = None) -> str:
    """Return JSON whose text can be read, with control characters and what is no text (surrogates) escaped."""
    text = json.dumps(data, ensure_ascii=False, indent=indent)
    if text.isascii() and "\x7f" not in text:
        return text
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1].replace("\x7f", "\\u007f") for c in text)
