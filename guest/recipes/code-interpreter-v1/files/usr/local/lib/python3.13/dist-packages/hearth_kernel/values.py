"""Conversion of any Python object to a JSON value."""

import datetime
import enum
import itertools
import math
import sys

# Deeper values become text. Objects may contain themselves.
DEPTH_MAX = 32
# Bound of the text of an object without a JSON form. It only describes the object.
DESCRIPTION_LENGTH_MAX = 10_000
# Integers of at most this many bits fit every JSON parser that has 64-bit integers; larger ones become text.
INTEGER_BITS_MAX = 63


def to_json(value, depth=0):
    """Returns the JSON form of a value; objects without one become text.

    NaN and infinity become null, because JSON lacks them.
    """
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is str:
        return to_text(value)
    if kind is int:
        return value if value.bit_length() <= INTEGER_BITS_MAX else describe(value)
    if kind is float:
        return value if math.isfinite(value) else None
    if depth >= DEPTH_MAX:
        return describe(value)
    try:
        return _object_to_json(value, depth)
    except Exception:  # The object is the user's, and may raise anything.
        return describe(value)


def describe(value):
    """Returns the text of an object, even if its methods raise."""
    try:
        text = str(value)
    except Exception:
        text = f"<{type(value).__name__} object>"
    return to_text(text[:DESCRIPTION_LENGTH_MAX])


def to_text(text):
    """Returns the text as a plain string that UTF-8 can encode."""
    text = str.__str__(text)
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="replace").decode()
    return text


def key_to_text(key):
    """Returns the JSON key for a column name or the key of a dictionary."""
    if isinstance(key, str):
        return to_text(key)
    # datetime.date also covers pandas' timestamps.
    return key.isoformat() if isinstance(key, datetime.date) else describe(key)


def unique_keys(keys):
    """Returns the keys as strings; repeated ones get a number, as pandas does when it reads a file."""
    seen = set()
    unique = []
    for text in map(key_to_text, keys):
        candidates = itertools.chain([text], (f"{text}.{number}" for number in itertools.count(1)))
        text = next(candidate for candidate in candidates if candidate not in seen)
        seen.add(text)
        unique.append(text)
    return unique


def _object_to_json(value, depth):
    if isinstance(value, enum.Enum):
        return to_json(value.value, depth + 1)
    if isinstance(value, dict):
        items = list(value.items())
        keys = unique_keys(key for key, _ in items)
        return {key: to_json(item, depth + 1) for key, (_, item) in zip(keys, items)}
    if isinstance(value, (list, tuple)):
        return [to_json(item, depth + 1) for item in value]
    if isinstance(value, str):
        return to_text(value)
    if _is_missing(value):
        return None
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray):
        return to_json(value.tolist(), depth + 1)
    if numpy is not None and isinstance(value, (numpy.bool_, numpy.integer, numpy.floating, numpy.str_)):
        item = value.item()
        # `item` of an extended-precision float returns the object itself.
        return describe(value) if isinstance(item, numpy.generic) else to_json(item, depth + 1)
    if isinstance(value, int):
        return to_json(int(value), depth + 1)
    if isinstance(value, float):
        return to_json(float(value), depth + 1)
    return describe(value)


def _is_missing(value):
    """Returns true for pandas' `NaT` and `NA`."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and (value is pandas.NaT or value is pandas.NA)
