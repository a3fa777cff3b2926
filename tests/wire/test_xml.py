"""Strict XML, and its canonical form against examples worked by hand from the specification's rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import MalformedError
from cloister.wire import xml


def _canonical(text: str) -> str:
    return xml.canonical(xml.parse(text.encode(), "test", limit=1 << 20)).decode()


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("<a/>", "<a></a>"),
        ("\n<a\n  b = 'x'  ></a >\n", '<a b="x"></a>'),
        ('<?xml version="1.0"?><a>\r\nx\ry</a>', "<a>\nx\ny</a>"),
        ("<a>&lt;&gt;&amp;&quot;&apos;&#13;&#9;></a>", "<a>&lt;&gt;&amp;\"'&#xD;\t&gt;</a>"),
        ("<a b='&lt;>&amp;\"&#9;&#10;&#13;x\ty'/>", '<a b="&lt;>&amp;&quot;&#x9;&#xA;&#xD;x y"></a>'),
        ('<a c="" b=""/>', '<a b="" c=""></a>'),
        ('<a xmlns:z="u:1" xmlns:y="u:2" xmlns="u:3"/>', '<a xmlns="u:3" xmlns:y="u:2" xmlns:z="u:1"></a>'),
        # Attributes are ordered by namespace and then by local name, those without a namespace first.
        (
            '<a xmlns:y="u:2" xmlns:z="u:1" y:b="1" z:c="2" z:a="3" d="4"/>',
            '<a xmlns:y="u:2" xmlns:z="u:1" d="4" z:a="3" z:c="2" y:b="1"></a>',
        ),
        # A declaration that is in force already is not repeated; one that changes it is.
        ('<a xmlns="u"><b xmlns="u"/><c xmlns=""/></a>', '<a xmlns="u"><b></b><c xmlns=""></c></a>'),
        ('<p:a xmlns:p="u"><p:b xmlns:p="v"><c xmlns:p="v"/></p:b></p:a>', None),
        ('<a xmlns=""/>', "<a></a>"),
        ("<a>é\U0001f600</a>", "<a>é\U0001f600</a>"),
    ],
)
def test_canonical_form(text: str, canonical: str | None) -> None:
    expected = canonical or '<p:a xmlns:p="u"><p:b xmlns:p="v"><c></c></p:b></p:a>'
    assert _canonical(text) == expected
    assert _canonical(expected) == expected


def test_a_part_carries_the_namespaces_in_scope() -> None:
    root = xml.parse(b'<a xmlns="u:1" xmlns:p="u:2"><b xmlns:q="u:3" c="d"><e/></b></a>', "test", limit=1000)
    (part,) = root.elements()
    assert xml.canonical(part) == b'<b xmlns="u:1" xmlns:p="u:2" xmlns:q="u:3" c="d"><e></e></b>'
    assert xml.canonical(root, without=part) == b'<a xmlns="u:1" xmlns:p="u:2"></a>'


def test_names_are_expanded() -> None:
    root = xml.parse(b'<p:a xmlns:p="u" p:b="1" c="2"><d/></p:a>', "test", limit=1000)
    assert root.is_a("u", "a")
    assert root.attributes == {("u", "b"): "1", ("", "c"): "2"}
    assert root.elements()[0].is_a("", "d")
    assert [element.local for element in root.walk()] == ["a", "d"]


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "<a>", "<a></b>", "<a/><a/>", "<a/>x", "<a b='1' b='2'/>", "<p:a/>", "<a p:b=''/>",
        "<a xmlns:p='u' xmlns:q='u' p:b='1' q:b='2'/>", "<a xmlns:p=''/>", "<a xmlns:xml='u'/>", "<a xmlns:xmlns='u'/>",
        "<a xmlns:p='http://www.w3.org/XML/1998/namespace' p:lang='x'/>", "<a xml:lang='en'/>", "<a xml:id='x'/>",
        "<!DOCTYPE a><a/>", "<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", "<a>&b;</a>", "<a><!-- --></a>", "<?x y?><a/>",
        "<a><![CDATA[x]]></a>", "<a:b:c xmlns:a='u'/>", "<:a/>", "<a:/>", "<a>&#0;</a>", "<a>\x01</a>",
        "<a>" * 17 + "</a>" * 17, "<a>" + "<b/>" * 4096 + "</a>",
    ],
)  # fmt: skip
def test_what_is_refused(text: str) -> None:
    with pytest.raises(MalformedError):
        xml.parse(text.encode(), "test", limit=1 << 20)


def test_another_encoding_is_refused() -> None:
    for data in (b"\xff\xfea", "<a>é</a>".encode("latin-1"), "<a/>".encode("utf-16")):
        with pytest.raises(MalformedError):
            xml.parse(data, "test", limit=1000)


def test_entities_do_not_expand() -> None:
    rows = "".join(f'<!ENTITY e{at} "{f"&e{at - 1};" * 10}">' for at in range(1, 12))
    with pytest.raises(MalformedError, match="document types"):
        xml.parse(f'<!DOCTYPE a [<!ENTITY e0 "x">{rows}]><a>&e11;</a>'.encode(), "test", limit=1 << 20)


def test_messages_do_not_quote() -> None:
    with pytest.raises(MalformedError) as caught:
        xml.parse(b"<secret>&secret;</secret>", "test", limit=1000)
    assert "secret" not in str(caught.value)
    with pytest.raises(MalformedError, match="limit"):
        xml.parse(b"<a/>", "test", limit=3)


def test_text_and_elements_do_not_mix() -> None:
    root = xml.parse(b"<a> <b>x</b>\n</a>", "test", limit=1000)
    assert root.elements()[0].text() == "x"
    with pytest.raises(MalformedError):
        root.text()
    with pytest.raises(MalformedError):
        xml.parse(b"<a>x<b/></a>", "test", limit=1000).elements()


@given(st.binary(max_size=100) | st.text("<>/ab:='\" &;x", max_size=60).map(str.encode))
def test_bytes_from_strangers(data: bytes) -> None:
    try:
        element = xml.parse(data, "test", limit=1000)
    except MalformedError:
        return
    once = xml.canonical(element)
    assert xml.canonical(xml.parse(once, "test", limit=10_000)) == once
