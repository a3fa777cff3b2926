"""Typed, strict access to TOML tables, with messages that name the path and never quote a value; and its strings."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Collection, Mapping
from datetime import timedelta

from cloister.errors import PolicyDocumentError

MAX_LINE = 300
_HEX = re.compile(r"[0-9a-f]*\Z")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_PAGE = "See docs/policy.md."


def parse(data: bytes, *, limit: int) -> Table:
    """The root table of a TOML 1.0 document of at most `limit` bytes; raises PolicyDocumentError with the line."""
    if len(data) > limit:
        raise PolicyDocumentError(f"the policy is larger than {limit} bytes", hint="Is it the right file?")
    try:
        return Table(tomllib.loads(data.decode("utf-8")), "")
    except UnicodeDecodeError:
        raise PolicyDocumentError("the policy is not UTF-8", hint="Save it as UTF-8.") from None
    except (ValueError, RecursionError) as error:
        # TOMLDecodeError is a ValueError; a bare one is CPython's limit on the digits of an integer. The parser's
        # message may quote the document, so only the place is taken from it.
        where = re.search(r"\(at (line \d+, column \d+|end of document)\)", str(error))
        raise PolicyDocumentError(
            f"the policy is not TOML {where.group() if where else ''}".rstrip(), hint="Mend the line."
        ) from None


def quote(text: str) -> str:
    """`text` as a basic string of TOML, without surrogates; JSON's own escapes differ beyond U+FFFF and for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def write(members: Mapping[str, object], path: str = "") -> list[str]:
    """Lines of a table as TOML: strings, whole numbers, booleans, lists of them, tables and lists of tables.

    Raises ValueError for anything else. Plain members come first, so that the lines read back as the same table.
    """
    lines, later = list[str](), list[str]()
    for key, value in members.items():
        name = key if _BARE_KEY.match(key) else quote(key)
        inner = f"{path}.{name}" if path else name
        if isinstance(value, Mapping):
            later += ["", f"[{inner}]", *write(value, inner)]
        elif isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
            for each in value:
                later += ["", f"[[{inner}]]", *write(each, inner)]
        else:
            lines.append(f"{name} = {_value(value)}")
    return lines + later


def _value(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case str():
            return quote(value)
        case list():
            return f"[{', '.join(map(_value, value))}]"
    raise ValueError("a value that a document cannot hold")


class Table:
    """One TOML table: typed getters that give None for what is absent, and a record of what was asked for.

    `path` is where it stands in the document, empty for the root.
    """

    def __init__(self, members: dict[str, object], path: str) -> None:
        self._members = members
        self.path = path
        self._asked: set[str] = set()

    @property
    def members(self) -> Mapping[str, object]:
        """What the table holds, as the parser gave it."""
        return self._members

    def name(self, key: str) -> str:
        """The path of a member, as a message shows it: an unusual key is escaped and cut."""
        shown = key if _BARE_KEY.match(key) else json.dumps(key[:64])
        return f"{self.path}.{shown}" if self.path else shown

    def _get(self, key: str, kind: type, what: str) -> object:
        self._asked.add(key)
        value = self._members.get(key)
        if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            raise PolicyDocumentError(f"{self.name(key)} must be {what}", hint=_PAGE)
        return value

    def text(self, key: str) -> str | None:
        """A string."""
        value = self._get(key, str, "a string")
        return value if isinstance(value, str) else None

    def line(self, key: str) -> str | None:
        """A string that verdicts print: one line without control characters, so that it cannot pose as another."""
        value = self.text(key)
        if value is not None and (len(value) > MAX_LINE or not value.isprintable()):
            raise PolicyDocumentError(
                f"{self.name(key)} must be one line of at most {MAX_LINE} printable characters", hint=_PAGE
            )
        return value

    def flag(self, key: str) -> bool | None:
        """true or false."""
        value = self._get(key, bool, "true or false")
        return value if isinstance(value, bool) else None

    def number(self, key: str, smallest: int, largest: int, what: str = "") -> int | None:
        """A whole number in the closed range; `what` is its unit."""
        value = self._get(key, int, f"a whole number{what and ' of ' + what}")
        if not isinstance(value, int):
            return None
        if not smallest <= value <= largest:
            raise PolicyDocumentError(
                f"{self.name(key)} must be from {smallest} to {largest}{what and ' ' + what}",
                hint="Choose a value in that range.",
            )
        return value

    def seconds(self, key: str, smallest: int, largest: int) -> timedelta | None:
        """A whole number of seconds in the closed range."""
        value = self.number(key, smallest, largest, "seconds")
        return None if value is None else timedelta(seconds=value)

    def texts(self, key: str) -> tuple[str, ...] | None:
        """A list of at least one string."""
        value = self._get(key, list, "a list of strings")
        if not isinstance(value, list):
            return None
        if not value or not all(isinstance(item, str) for item in value):
            raise PolicyDocumentError(
                f"{self.name(key)} must be a list of at least one string", hint="An empty list accepts nothing."
            )
        return tuple(str(item) for item in value)

    def digests(self, key: str) -> tuple[str, ...] | None:
        """A list of lower-case hex SHA-256 digests."""
        return self.hexes(key, 32, what="a SHA-256 digest")

    def hexes(self, key: str, size: int, *, what: str = "a value") -> tuple[str, ...] | None:
        """A list of at least one string of `size` bytes in lower-case hex."""
        values = self.texts(key)
        for at, value in enumerate(values or ()):
            if len(value) != 2 * size or not _HEX.match(value):
                raise PolicyDocumentError(
                    f"{self.name(key)}[{at}] must be {what} of {2 * size} lower-case hex digits",
                    hint="Copy it from the build.",
                )
        return values

    def hex(self, key: str, size: int) -> str | None:
        """A string of `size` bytes in lower-case hex."""
        value = self.text(key)
        if value is not None and (len(value) != 2 * size or not _HEX.match(value)):
            raise PolicyDocumentError(
                f"{self.name(key)} must be {2 * size} lower-case hex digits", hint="Copy it from the build."
            )
        return value

    def choice(self, key: str, allowed: Collection[str]) -> str | None:
        """A string out of a set."""
        value = self.text(key)
        if value is not None and value not in allowed:
            raise PolicyDocumentError(f"{self.name(key)} must be one of {', '.join(sorted(allowed))}", hint=_PAGE)
        return value

    def choices(self, key: str, allowed: Collection[str]) -> tuple[str, ...] | None:
        """A list of at least one string, each out of a set."""
        values = self.texts(key)
        if values is not None and not set(values) <= set(allowed):
            raise PolicyDocumentError(f"{self.name(key)} may hold {', '.join(sorted(allowed))}", hint=_PAGE)
        return values

    def table(self, key: str) -> Table:
        """A table, empty if absent."""
        value = self._get(key, dict, "a table")
        return Table(value if isinstance(value, dict) else {}, self.name(key))

    def tables(self, key: str) -> list[Table]:
        """An array of tables, empty if absent."""
        value = self._get(key, list, "a list of tables")
        items = value if isinstance(value, list) else []
        if not all(isinstance(item, dict) for item in items):
            raise PolicyDocumentError(f"{self.name(key)} must be [[{self.name(key)}]] tables", hint=_PAGE)
        return [Table(item, f"{self.name(key)}[{at}]") for at, item in enumerate(items)]

    def done(self) -> None:
        """Refuse members that nobody asked for."""
        unknown = sorted(set(self._members) - self._asked)
        if unknown:
            raise PolicyDocumentError(
                f"unknown key {', '.join(self.name(key) for key in unknown[:8])}",
                hint="A misspelt rule would go unchecked; see docs/policy.md.",
            )
