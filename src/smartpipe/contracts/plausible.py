"""Plausible texts and numbers for a field, by its name, its format and its limits. Pure."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from smartpipe.contracts.compare import Schema

    Search: TypeAlias = Callable[[str, float, float], Sequence[str]]
    """Takes a pattern, and the least and the greatest length. Returns texts that match."""

_MOMENTS = ("2026-01-31T12:30:00Z", "2026-02-28T08:15:30Z", "2026-03-01T23:59:59Z")
_UUIDS = (
    "7d444840-9dc0-41d1-b245-5ffdce74fad2",
    "e902893a-9d22-4c7e-a7b8-d6e313b71d9f",
    "19b9b1a6-6c1d-4f3a-8f5e-2a7c3f0d4b6e",
)
_BY_FORMAT: Mapping[str, tuple[str, ...]] = {
    "date-time": (*_MOMENTS, "2026-01-31T12:30:00"),
    "date": ("2026-01-31", "2026-02-28", "2026-03-01"),
    "time": ("12:30:00Z", "08:15:30Z", "12:30:00"),
    "duration": ("PT1M30S", "PT1H", "P1D"),
    "uuid": _UUIDS,
    "uuid4": _UUIDS,
    "uuid1": ("c232ab00-9414-11ec-b3c8-9f6bdeced846",),
    "uuid3": ("5df41881-3aed-3515-88a7-2f4a814cf09e",),
    "uuid5": ("2ed6657d-e927-568b-95e1-2665a8aea6a2",),
    "uuid6": ("1ec9414c-232a-6b00-b3c8-9f6bdeced846",),
    "uuid7": ("017f22e2-79b0-7cc3-98c4-dc0c0c07398f",),
    "uuid8": ("2489e9ad-2ee2-8e00-8ec9-32d5f69181c0",),
    "email": ("ada@example.com", "bob@example.org", "eve@example.net"),
    "name-email": ("Ada <ada@example.com>",),
    "uri": ("https://example.com/", "https://shop.example.org/orders/1", "s3://bucket/key", "postgresql://db/shop"),
    "multi-host-uri": ("postgresql://one.example.com,two.example.com/shop", "https://example.com/"),
    "hostname": ("example.com",),
    "ipv4": ("192.0.2.1", "192.0.2.2", "198.51.100.7"),
    "ipv6": ("2001:db8::1", "2001:db8::2"),
    "ipvanyaddress": ("192.0.2.1", "2001:db8::1"),
    "ipv4network": ("192.0.2.0/24",),
    "ipv6network": ("2001:db8::/32",),
    "ipvanynetwork": ("192.0.2.0/24", "2001:db8::/32"),
    "ipv4interface": ("192.0.2.1/24",),
    "ipv6interface": ("2001:db8::1/32",),
    "ipvanyinterface": ("192.0.2.1/24", "2001:db8::1/32"),
    "path": ("/srv/report.txt", "report.txt"),
    "file-path": ("/etc/hostname", "/srv/report.txt"),
    "directory-path": ("/tmp", "/srv"),  # noqa: S108 - a value, and no file of ours
    "base64url": ("aGVsbG8=",),
    "base64": ("aGVsbG8=",),
    "binary": ("hello", "aGVsbG8="),
    "json-string": ("{}",),
    "color": ("red", "#00ff00"),
    "password": ("secret",),
}
_TEXTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"e?mail", ("ada@example.com", "bob@example.org", "eve@example.net")),
    (r"first_?name|given_?name", ("Ada", "Bob", "Eve")),
    (r"last_?name|family_?name|surname", ("Lovelace", "Miller", "Moore")),
    (r"user_?name|login|nick_?name", ("ada", "bob", "eve")),
    (r"file_?name", ("report.pdf", "photo.jpg", "data.csv")),
    (r"(host|server|domain)_?(name)?", ("example.com", "shop.example.org", "www.example.net")),
    (r"(\w+_)?(name|author|customer|person|user)", ("Ada", "Bob", "Eve")),
    (r"(\w+_)?currency(_code)?", ("EUR", "CHF", "USD")),
    (r"(\w+_)?country(_code)?", ("CH", "DE", "FR")),
    (r"(\w+_)?(language|locale|lang)", ("en", "de", "fr")),
    (r"(\w+_)?city", ("Bern", "Paris", "Rome")),
    (r"(\w+_)?street|(\w+_)?address(_line)?(_?\d)?", ("1 Main Street", "2 Lake Road", "3 Hill Lane")),
    (r"(\w+_)?(zip|postal|post)_?(code)?", ("3001", "75001", "10115")),
    (r"(\w+_)?(phone|mobile|fax)(_number)?", ("+41446681800", "+4930901820", "+33140205050")),
    (r"(\w+_)?ur[li]|(\w+_)?link|(\w+_)?href", ("https://example.com/", "https://shop.example.org/orders/1")),
    (r"(\w+_)?(title|subject|headline)", ("A title", "Good news", "Hello")),
    (
        r"(\w+_)?(text|description|comment|note|message|reason|body|summary)",
        ("A short text.", "It works.", "Thank you."),
    ),
    (r"(\w+_)?(at|time|timestamp|moment)", _MOMENTS),
    (r"(\w+_)?(date|day|birthday)", ("2026-01-31", "2026-02-28", "2026-03-01")),
    (r"(\w+_)?(price|amount|total|cost|sum|fee|balance|tax|discount|rate)", ("42.00", "9.95", "100.00")),
    (r"(\w+_)?(sku|article|product)", ("SKU-1", "SKU-2", "SKU-3")),
    (r"(\w+_)?iban", ("CH9300762011623852957", "DE89370400440532013000")),
    (r"(\w+_)?colou?r", ("red", "green", "blue")),
)
_NUMBERS: tuple[tuple[str, float], ...] = (
    (r"(\w+_)?(cents|price|amount|total|cost|sum|fee|balance|tax)", 4_200),
    (r"(\w+_)?(quantity|count|items|pieces|size)", 3),
    (r"(\w+_)?age", 36),
    (r"(\w+_)?year", 2026),
    (r"(\w+_)?(percent|percentage)", 50),
    (r"(\w+_)?(lat|latitude)", 46.95),
    (r"(\w+_)?(lon|lng|longitude)", 7.45),
    (r"(\w+_)?(rate|ratio|share|score|discount|factor)", 0.5),
    (r"(\w+_)?(seconds|duration|timeout)", 90),
    (r"(\w+_)?(at|time|timestamp)", 1_769_862_600),
    (r"(\w+_)?port", 8080),
)
_CHARACTERS = ("1234567890", "ABCDEFGHIJ", "abcdefghij", "a1b2c3d4e5", "A1B2C3D4E5")
_WORDS = ("blue", "green", "amber")
# A text may have rules that its schema does not name, such as that of a Decimal.
_LAST_RESORTS = ("42.00", "1", "A", "a", "AB", "ABC", *_MOMENTS[:1], "PT1M30S", "2026-01-31", _UUIDS[0])


def texts_for(name: str, schema: Schema, search: Search) -> list[str]:
    """Return texts that a schema allows, the most plausible one first."""
    expected = schema.get("format")
    found: Sequence[str] = _BY_FORMAT.get(expected, ()) if expected else ()
    if not found:
        found = (*_named_texts(name), *_LAST_RESORTS)
    least, most = schema.get("minLength", 0), schema.get("maxLength", math.inf)
    fitting = [_fit(one, least, most) if expected is None else one for one in found]
    if "pattern" in schema:
        pattern = schema["pattern"]
        matching = [one for one in (*fitting, *_regular_texts(least, most)) if _matches(pattern, one)]
        fitting = matching or [one for one in search(pattern, least, most) if least <= len(one) <= most]
    return list(dict.fromkeys(fitting))


def numbers_for(name: str, schema: Schema) -> list[Any]:
    """Return numbers that a schema allows, the most plausible one first."""
    low, high = _limits(schema)
    usual = next((value for pattern, value in _NUMBERS if re.fullmatch(pattern, _snake(name))), 1)
    factor = schema.get("multipleOf")
    found: list[Any] = []
    for one in (usual, 1, 2, 10, 100, 0, low, high, low + 1, high - 1):
        value = min(max(one, low), high)
        if math.isinf(value):
            continue
        if factor:
            value = math.ceil(value / factor) * factor
        whole = math.ceil(value)
        found.append(whole if schema["type"] == "integer" or whole == value else value)
    return [one for one in dict.fromkeys(found) if low <= one <= high]


def _named_texts(name: str) -> Sequence[str]:
    snake = _snake(name)
    for pattern, texts in _TEXTS:
        if re.fullmatch(pattern, snake):
            return texts
    owner = re.fullmatch(r"(?:(\w+)_)?(?:id|ids|key|number|no|ref|reference|code)", snake)
    if owner:
        word = (owner[1] or snake).rpartition("_")[2]
        return (f"{word}-1", f"{word}-2", f"{word}-3", "1", "2")
    word = snake.rpartition("_")[2]
    return (word, f"{word} two", f"{word} three") if word else _WORDS


def _regular_texts(least: float, most: float) -> Iterator[str]:
    """Yield texts of digits or letters of several lengths, which match many patterns."""
    for size in sorted({int(least), *range(1, 9), 10, 12, 16}):
        if least <= size <= most:
            yield from ((characters * (size // 10 + 1))[:size] for characters in _CHARACTERS)


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_").lower()


def _fit(text: str, least: float, most: float) -> str:
    fitted = text[: int(min(most, len(text)))]
    return fitted + "x" * int(least - len(fitted)) if len(fitted) < least else fitted


def _matches(pattern: str, text: str) -> bool:
    try:
        return re.search(pattern, text) is not None
    except re.error:  # a pattern of ECMA 262 or of Rust
        return False


def _limits(schema: Schema) -> tuple[float, float]:
    step = 1 if schema["type"] == "integer" else 0.01
    lows = [schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf) + step]
    highs = [schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf) - step]
    return max(lows), min(highs)
