"""Make untrusted text safe to print: no control characters, limited length."""

import json
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

LONGEST_NAME = 4096  # characters of a file name; no system has a longer one

_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = _brief.maxlong = 100
_brief.maxlist = _brief.maxtuple = _brief.maxdict = 8


def brief(value: Any) -> str:
    """Return the ``repr`` of a value, shortened so that an error that quotes it stays readable."""
    return _brief.repr(value)


def clip(text: object, length: int = 500) -> str:
    """Return the beginning of a text, such as another package's error, which may quote its whole input."""
    text = str(text)
    return text if len(text) <= length else f"{text[:length]} ..."


def printable(text: str) -> str:
    """Return text without control characters, which could write to the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return the end of a message that suggests the most similar of some names; nothing if none is similar.

    Example:
        >>> did_you_mean("--modle", ["--model", "--data"])
        ': did you mean --model?'
    """
    import difflib  # a command without a mistake does without it

    near = difflib.get_close_matches(name, list(names), 1)
    return f": did you mean {near[0]}?" if near else ""


def join_some(texts: Sequence[str], most: int, separator: str = ", ") -> str:
    """Join the first ``most`` texts, and say how many others there are.

    Example:
        >>> join_some(["gull", "owl", "tern"], 2)
        'gull, owl and 1 more'
    """
    others = len(texts) - most
    return separator.join(texts[:most]) + (f" and {others} more" if others > 0 else "")


def from_json(text: str | bytes) -> Any:
    """Read untrusted JSON.

    Raises:
        ValueError: if it is not JSON, or is nested too deeply for Python.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error


def from_metadata(metadata: Mapping[str, str], key: str, make: Callable[[Any], T]) -> T | None:
    """Read an entry of weights' metadata, which is JSON; return None if there is no such entry.

    Args:
        metadata: Metadata of the weights.
        key: Key of the entry.
        make: Builds the result from the data of the entry.

    Raises:
        ValueError: if the entry is damaged.
    """
    text = metadata.get(key)
    if text is None:
        return None
    try:
        return make(from_json(text))
    except (TypeError, ValueError) as error:
        raise ValueError(f"damaged metadata {key!r} of the weights: {brief(str(error))}") from error


def to_json(data: Any, indent: int | None = None) -> str:
    """Return readable JSON, with control characters and lone surrogates escaped."""
    text = json.dumps(data, ensure_ascii=False, indent=indent)
    if text.isascii() and "\x7f" not in text:
        return text
    return "".join(c if c.isprintable() or c == "\n" else _escape(c) for c in text)


def _escape(character: str) -> str:
    return "\\u007f" if character == "\x7f" else json.dumps(character)[1:-1]
