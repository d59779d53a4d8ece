"""Main texts of pages, and the pages of archives, broken ones among them."""

from __future__ import annotations

import gzip
import zlib

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.curate import web
from pipelines.curate.records import Fields, read_beginning
from pipelines.curate.web import page, read_html, read_warc

SENTENCES = " ".join(f"Im Jahr {year} flog die Küstenseeschwalbe über das Meer nach Süden." for year in range(1900, 1925))
NAVIGATION = "<nav><a href=/>Home</a> <a href=/about>About us</a></nav>"


def html(text=SENTENCES, head=""):
    return f"<html><head><title>T</title>{head}</head><body>{NAVIGATION}<article><p>{text}</p></article></body></html>"


def record(payload, kind="response", uri="<http://example.org/a>"):
    """A WARC record, its address in angle brackets as wget writes them."""
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {uri}\r\nWARC-Date: 1970-01-02T00:00:00Z\r\nContent-Length: {len(payload)}"
    return head.encode() + b"\r\n\r\n" + payload + b"\r\n\r\n"


def http(body, *headers, status="200 OK"):
    lines = [f"HTTP/1.1 {status}", *headers] if any(h.startswith("Content-Type") for h in headers) else [
        f"HTTP/1.1 {status}", "Content-Type: text/html; charset=utf-8", *headers]  # fmt: skip
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def archive(tmp_path, *records, name="a.warc.gz"):
    path = tmp_path / name
    path.write_bytes(b"".join(map(gzip.compress, records)) if name.endswith(".gz") else b"".join(records))
    return list(read_warc(str(path), Fields()))


def test_the_main_text_is_what_the_page_is_about(tmp_path):
    (tmp_path / "a.html").write_text(html())
    (found,) = read_html(str(tmp_path / "a.html"), Fields())
    assert (found.text, found.problem) == (SENTENCES, "")


@pytest.mark.parametrize(
    ("encoding", "head", "charset"),
    [
        ("utf-8", "", ""),
        ("utf-8-sig", "", "iso-8859-1"),
        ("utf-16", "", ""),
        ("cp1252", "", ""),
        ("cp1252", '<meta charset="ISO-8859-1">', ""),
        ("iso8859-2", '<meta http-equiv=Content-Type content="text/html; charset=iso-8859-2">', ""),
        ("utf-8", "", "no-such-charset"),
        ("utf-8", '<meta charset="hex">', ""),
        ("utf-8", "", "us-ascii"),
        ("ascii", '<meta charset="utf-16">', ""),
    ],
)
def test_a_page_is_read_in_the_encoding_that_it_comes_in(encoding, head, charset):
    assert page(html(head=head).encode(encoding, "replace"), charset).text == SENTENCES.encode(encoding, "replace").decode(encoding)


@pytest.mark.parametrize("charset", ["punycode", "idna", "utf7", "unicode_escape", "RAW-UNICODE-ESCAPE"])
def test_a_page_is_in_no_encoding_that_only_python_has(charset):
    """They would unescape what is written, and punycode takes hours for 8 MB."""
    text = r"The tern wrote \u0041 and +AGE- on the ice, many times over, and flew on to the south. " * 9
    assert page(html(text).encode(), charset).text == text.strip()


def test_what_a_parser_stumbles_over_is_told_alike_in_every_process(monkeypatch):
    monkeypatch.setattr("trafilatura.extract", lambda *_, **__: {}[object()])
    assert page(html().encode()) == page(html().encode())
    assert page(html().encode()).problem == "page: KeyError"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "no_main_text"),
        (b"<html><body></body></html>", "no_main_text"),
        (b"<html><body><script>let x = 1;</script><style>p {}</style></body></html>", "no_main_text"),
        (b'<meta charset="utf-8">\xff\xfe\xff', "encoding"),
        (b"x" * 100, "too_large"),
    ],
)
def test_what_is_no_page_says_why(raw, reason, monkeypatch):
    monkeypatch.setattr(web, "_PAGE_BYTES", 99)
    found = page(raw, source_id="http://x")
    assert (found.text, found.problem.split(":")[0], found.source_id) == (None, reason, "http://x")


def test_of_a_page_that_is_too_large_no_more_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(web, "_PAGE_BYTES", 99)
    (tmp_path / "a.html").write_bytes(b"x" * 10_000)
    assert len(read_beginning(str(tmp_path / "a.html"), 100)) == 100
    (found,) = read_html(str(tmp_path / "a.html"), Fields())
    assert found.problem == "too_large: more than 99 bytes of HTML"


@given(st.binary(max_size=300) | st.text(max_size=100).map(lambda t: html(t).encode(errors="replace")))
def test_no_bytes_stop_the_reading(raw):
    found = page(raw)
    assert (found.text is None) == bool(found.problem)
    assert found == page(raw)


def test_a_page_does_not_depend_on_those_before_it():
    """A cache of paragraphs that were seen would drop the third."""
    assert len({page(html().encode()).text for _ in range(5)}) == 1


def test_every_record_of_an_archive_comes_back_with_its_fate(tmp_path):
    good = html().encode()
    found = archive(
        tmp_path,
        record(b"software: test\r\n", "warcinfo"),
        record(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "request"),
        record(http(good)),
        record(http(zlib.compress(good), "Content-Encoding: deflate")),
        record(http(gzip.compress(good), "Content-Encoding: gzip")),
        record(http(b"%x\r\n%s\r\n0\r\n\r\n" % (len(good), good), "Transfer-Encoding: chunked")),
        record(http(good, "Content-Encoding: br")),
        record(http(b"", status="301 Moved")),
        record(http(b"{}", "Content-Type: application/json")),
        record(http(b"not found", status="404 Not Found")),
        record(b"", uri="http://example.org/empty"),
        record(http(b"<p></p>")),
    )
    assert [r.problem.split(":")[0] for r in found] == [
        "not_response", "not_response", "", "", "", "", "encoding", "not_ok", "not_html", "not_ok", "http", "no_main_text",
    ]  # fmt: skip
    assert {r.text for r in found[2:6]} == {SENTENCES}
    assert (found[2].source_id, found[2].date) == ("http://example.org/a", 86400.0)


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_a_truncated_archive_gives_what_stood_before(tmp_path, name):
    whole = record(http(html().encode()))
    cut = whole[: len(whole) // 2]
    path = tmp_path / name
    path.write_bytes(whole + cut if name == "a.warc" else gzip.compress(whole) + gzip.compress(whole)[:300])
    records = read_warc(str(path), Fields())
    assert next(records).text == SENTENCES
    if name == "a.warc":
        assert next(records).problem.startswith("truncated: ")
    else:
        with pytest.raises(EOFError):
            list(records)


@pytest.mark.parametrize(
    "raw", [b"no archive\n" * 9, b"WARC/1.0\r\nContent-Length: many\r\n\r\n", b"\xff\xfe" * 40, b"WARC/1.0\r\n\r\n", b""]
)
def test_no_bytes_stop_the_reading_of_an_archive(tmp_path, raw):
    good = record(http(html().encode()))
    assert all(r.problem for r in archive(tmp_path, raw, name="a.warc"))
    assert archive(tmp_path, good, raw, name="b.warc")[0].text == SENTENCES


def test_a_real_archive(data_dir):
    found = list(read_warc(str(data_dir / "web" / "sample-0000.warc.gz"), Fields()))
    pages = [r for r in found if r.text is not None]
    assert len(pages) >= 15
    assert all(r.source_id.startswith("http") for r in pages)
    assert {r.problem.split(":")[0] for r in found} <= {"", "not_response", "not_ok", "not_html", "no_main_text"}
    pa.array([r.text for r in pages])
