"""Strict XML from strangers, and its canonical form (Canonical XML 1.1, without comments).

One tree serves both: what a signature covers is what is read. A document type, entities, processing instructions,
comments, CDATA and `xml:` attributes are refused, so that nothing is expanded or fetched, and versions 1.0 and 1.1 of
the canonical form agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NoReturn
from xml.parsers import expat

from cloister.errors import MalformedError

MAX_DEPTH = 16
MAX_ELEMENTS = 4096
XML_NAMESPACE = "http://www.w3.org/XML/1998/namespace"


@dataclass(kw_only=True, eq=False)
class Element:
    """One element. `attributes` maps (namespace, local name) to a value; `declared` are its own xmlns declarations.

    `scope` maps every prefix in scope to a namespace, "" to the default one. `children` are elements and text.
    """

    name: str
    namespace: str
    local: str
    attributes: Mapping[tuple[str, str], str]
    written: tuple[tuple[str, str, str], ...]  # (namespace, local name, name as written), in canonical order
    declared: tuple[str, ...]
    scope: Mapping[str, str]
    children: list[Element | str] = field(default_factory=list)

    def elements(self) -> list[Element]:
        """The child elements; raises MalformedError for text between them that is not white space."""
        if any(isinstance(child, str) and child.strip(" \t\n\r") for child in self.children):
            raise MalformedError("XML: text where only elements belong")
        return [child for child in self.children if isinstance(child, Element)]

    def text(self) -> str:
        """The text of an element that holds nothing else; raises MalformedError."""
        if not all(isinstance(child, str) for child in self.children):
            raise MalformedError("XML: elements where only text belongs")
        return "".join(child for child in self.children if isinstance(child, str))

    def is_a(self, namespace: str, local: str) -> bool:
        """Is this the element of that expanded name?"""
        return self.namespace == namespace and self.local == local

    def walk(self) -> Iterator[Element]:
        """This element and all below it."""
        yield self
        for child in self.children:
            if isinstance(child, Element):
                yield from child.walk()


def parse(data: bytes, what: str, *, limit: int) -> Element:
    """The root element of a UTF-8 document of at most `limit` bytes; raises MalformedError."""
    if len(data) > limit:
        raise MalformedError(f"{what}: {len(data)} bytes, the limit is {limit}")
    builder = _Builder()
    try:
        data.decode("utf-8")
        builder.feed(data)
    except (expat.ExpatError, ValueError) as error:
        # The parser's own message may quote the input.
        reason = f" ({error})" if isinstance(error, _Refused) else ""
        raise MalformedError(f"{what}: not strict XML{reason}") from None
    assert builder.root is not None
    return builder.root


class _Refused(ValueError):
    """Well-formed, but outside what is read here; the message is a fixed text."""


class _Builder:
    def __init__(self) -> None:
        self.root: Element | None = None
        self._open: list[Element] = []
        self._count = 0

    def feed(self, data: bytes) -> None:
        # Without a namespace separator, names arrive as written: the canonical form needs the prefixes.
        parser = expat.ParserCreate("UTF-8")
        parser.ordered_attributes = True
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        parser.StartDoctypeDeclHandler = self._refuse
        parser.ProcessingInstructionHandler = self._refuse
        parser.CommentHandler = self._refuse
        parser.StartCdataSectionHandler = self._refuse
        parser.Parse(data, True)

    def _refuse(self, *_: object) -> NoReturn:
        raise _Refused("document types, instructions, comments and CDATA are refused")

    def _start(self, name: str, pairs: list[str]) -> None:
        self._count += 1
        if self._count > MAX_ELEMENTS or len(self._open) >= MAX_DEPTH:
            raise _Refused("too many elements, or nested too deep")
        scope = dict(self._open[-1].scope) if self._open else {"": ""}
        declared, plain = [], []
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if key == "xmlns" or key.startswith("xmlns:"):
                prefix = key[6:]
                if prefix in ("xml", "xmlns") or value == XML_NAMESPACE or (key != "xmlns" and not (prefix and value)):
                    raise _Refused("a namespace declaration that may not be")
                scope[prefix] = value
                declared.append(prefix)
            else:
                plain.append((key, value))
        namespace, local = _expand(name, scope, scope[""])
        attributes: dict[tuple[str, str], str] = {}
        written = []
        for key, value in plain:
            # An attribute without a prefix is in no namespace, whatever the default is.
            expanded = _expand(key, scope, "")
            if expanded in attributes:
                raise _Refused("an attribute occurs twice")
            attributes[expanded] = value
            written.append((*expanded, key))
        element = Element(
            name=name, namespace=namespace, local=local, attributes=attributes, written=tuple(sorted(written)),
            declared=tuple(sorted(declared)), scope=scope,
        )  # fmt: skip
        if self._open:
            self._open[-1].children.append(element)
        else:
            self.root = element
        self._open.append(element)

    def _end(self, _name: str) -> None:
        self._open.pop()

    def _text(self, text: str) -> None:
        self._open[-1].children.append(text)


def _expand(name: str, scope: Mapping[str, str], default: str) -> tuple[str, str]:
    prefix, colon, local = name.rpartition(":")
    if not colon:
        return default, local
    if not prefix or not local or ":" in prefix or prefix not in scope:
        raise _Refused("a prefix that is not declared")
    return scope[prefix], local


_TEXT = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#xD;"})
_VALUE = str.maketrans({"&": "&amp;", "<": "&lt;", '"': "&quot;", "\t": "&#x9;", "\n": "&#xA;", "\r": "&#xD;"})


def canonical(element: Element, *, without: Element | None = None) -> bytes:
    """Canonical XML 1.1 (W3C, 2008) of the element with everything below it but the element `without`.

    The apex carries every namespace in scope, as a document subset of it does (section 2.3 of version 1.0).
    """
    pieces: list[str] = []
    _write(element, {}, without, pieces)
    return "".join(pieces).encode("utf-8")


def _write(element: Element, above: Mapping[str, str], without: Element | None, pieces: list[str]) -> None:
    prefixes = element.declared if above else sorted(element.scope)
    pieces.append(f"<{element.name}")
    for prefix in prefixes:
        if element.scope[prefix] != above.get(prefix, ""):
            name = f"xmlns:{prefix}" if prefix else "xmlns"
            pieces.append(f' {name}="{element.scope[prefix].translate(_VALUE)}"')
    for namespace, local, name in element.written:
        pieces.append(f' {name}="{element.attributes[namespace, local].translate(_VALUE)}"')
    pieces.append(">")
    for child in element.children:
        if isinstance(child, str):
            pieces.append(child.translate(_TEXT))
        elif child is not without:
            _write(child, element.scope, without, pieces)
    pieces.append(f"</{element.name}>")
