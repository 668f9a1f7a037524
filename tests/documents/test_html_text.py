"""The text of HTML: what browsers would show, in one pass over whatever is sent."""

import pytest

from streamlm.documents.html_text import decoded, html_text
from streamlm.documents.markup import Tag, pieces


def text(page: str | bytes, *, most: int = 10_000, xml: bool | None = None) -> str:
    return html_text(page if isinstance(page, bytes) else page.encode(), most=most, xml=xml)


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("<p>Call  me\nIshmael.<p>Some years", "Call me Ishmael.\n\nSome years\n"),
        ("a<br>b<br/>c<hr>d", "a\nb\nc\n\nd\n"),
        ("<pre>a\n  b</pre>c\nd", "a\nb\n\nc d\n"),
        ("<table><tr><td>1<td>2<tr><td>3</table>", "1 2\n\n3\n"),
        ("<title>t</title><style>p{}</style><script>if (a<b) '</p>'</script>x", "x\n"),
        ("<script>a</SCRIPT >b<script>c", "b\n"),
        ("a<svg><text>x<svg></svg></text></svg>b<svg/>c<template>d</template>e", "abce\n"),
        ("<p title='>' data-x=\">\" y=>a</p>", "a\n"),
        ("a &lt;b&gt; &amp; &#8217; &eacute;&nbsp;c &unknown; &", "a <b> & ’ é c &unknown; &\n"),
        ("a < b <3 <> <!-- c --> <!doctype d> <?e?> </ f>g", "a < b <3 <> g\n"),
        ("a<!-->b<!-- c -- > d -->e<!-- f", "abe\n"),
        ("a<b title='never closed>c<p>d", "a\n"),
        ("&#999999999999;&#x110000;&#0;", "\ufffd\ufffd\ufffd\n"),
        ("a\x00\x1b[31mb", "a\ufffd\ufffd[31mb\n"),
        ("", "\n"),
    ],
)
def test_pages(page: str, expected: str) -> None:
    assert text(page) == expected


def test_xml_ends_its_elements_itself() -> None:
    page = "<?xml version='1.0'?><html><title/><script src='x'/><p>a<![CDATA[<b>]]></p></html>"
    assert text(page) == "a<b>\n"
    assert text(page.removeprefix("<?xml version='1.0'?>"), xml=False) == "\n"


def test_attributes() -> None:
    (tag,) = pieces("""<opf:Item ID=one href = "a&amp;b" x='"' empty id=two / z=>""")
    assert isinstance(tag, Tag) and tag.name == "item" and not tag.closes
    assert tag.attributes() == {"id": "one", "href": "a&b", "x": '"', "empty": "", "z": ""}


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("é".encode(), "é"),
        (b"\xef\xbb\xbf\xc3\xa9", "é"),
        ("é".encode("utf-16"), "é"),
        (b"\xe9\x92", "é’"),
        (b"<meta charset=latin1>\xe9\x92", "<meta charset=latin1>é’"),
        (b"<meta charset='koi8-r'>\xc1", "<meta charset='koi8-r'>а"),
        (b"<?xml encoding = \"gbk\"?>\xc4\xe3", '<?xml encoding = "gbk"?>你'),
        # No encodings of text, or slow ones.
        *((b"<meta charset=" + name + b">a", f"<meta charset={name.decode()}>a")
          for name in (b"punycode", b"idna", b"zip", b"rot13", b"utf-7", b"unicode_escape",
                       b"nonsense", b"mbcs", b"utf_32_be")),
    ],
)  # fmt: skip
def test_encodings(page: bytes, expected: str) -> None:
    assert decoded(page) == expected


def test_text_has_a_limit() -> None:
    with pytest.raises(ValueError, match="has more than 100 characters"):
        text("<p>word</p>" * 30, most=100)


ODD = ("<div>", "<a b='", '<a b="x" ', "<a =", "<", "<!--", "<!", "&", "&#9", "<script>", "<title>",
       "<svg>", "<![CDATA[", "</", "</p>", "a<b>", "<a\t", "=", "'", ">", "]]>", "-->")  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
def test_repeated_beginnings_take_one_pass(odd: str) -> None:
    """40,000 of what may begin something take 40,000 steps at most, not their square."""
    page = odd * 40_000
    for xml in (False, True):
        assert sum(1 for _ in pieces(page, xml=xml)) <= 2 * 40_000
