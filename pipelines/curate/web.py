"""Web pages: the main text of an HTML page, and the pages of a web archive (WARC).

Promise: a page that has no main text, is in no encoding that holds it, or is no page at all (a request, a redirect, an
image, a cut record) comes back with that problem; whatever a page is like, the text that is found in it depends on the page
alone: no clock limits the extraction and nothing is remembered from one page to the next, as a time-out or a cache of seen
paragraphs would. What limits it is its size. Price: the extraction, 1 to 3 MB of HTML a second on one core; it is by far
the dearest of all steps. After: trafilatura (Barbaresi, ACL 2021), which FineWeb uses; warcio for the records.
"""

from __future__ import annotations

import codecs
import logging
import re
import zlib
from collections.abc import Iterator
from dataclasses import replace

from warcio.archiveiterator import WARCIterator
from warcio.bufferedreaders import ChunkedDataException
from warcio.recordloader import ArchiveLoadFailed, ArcWarcRecord
from warcio.statusandheaders import StatusAndHeadersParser

from pipelines.curate.records import Fields, Record, open_stream, read_beginning, seconds_since_1970

__all__ = ["page", "read_html", "read_warc"]

_PAGE_BYTES = 8 << 20  # more is a listing or a trap, and takes minutes
_HTML = ("text/html", "application/xhtml+xml")
_META_CHARSET = re.compile(
    rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]{1,40})|<\?xml[^>]{0,80}?encoding\s*=\s*["']([\w.:-]{1,40})""", re.I
)
_HEADER_CHARSET = re.compile(r"""charset\s*=\s*["']?\s*([\w.:-]{1,40})""", re.I)
_META_WITHIN = 4096
# What the HTML standard reads these labels as.
_READ_AS = dict.fromkeys(("iso-8859-1", "latin-1", "latin1", "iso8859-1", "ascii", "us-ascii", "windows-1252"), "cp1252")
_READ_AS |= dict.fromkeys(("utf-16", "utf-16le", "utf-16be"), "utf-8")
_NO_PAGES = ("punycode", "idna", "undefined", "unicode-escape", "raw-unicode-escape", "utf-7")
"""Codecs of Python's that no browser reads a page by: they take time as the square of its length, or change what it says."""
_BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))


def read_html(uri: str, fields: Fields) -> Iterator[Record]:
    """One record: the page's main text."""
    yield page(read_beginning(uri, _PAGE_BYTES + 1))


def read_warc(uri: str, fields: Fields) -> Iterator[Record]:
    """A record for each of the archive's; all but successful HTML responses come back with a problem."""
    with open_stream(uri) as stream:
        records = WARCIterator(stream, no_record_parse=True, check_digests=False)
        try:
            yield from (_archived(record) for record in records)
        except (ArchiveLoadFailed, UnicodeDecodeError) as error:
            yield Record(None, problem=f"warc: {' '.join(str(error).split())}")


def page(raw: bytes, charset: str = "", source_id: str | None = None) -> Record:
    """The main text of an HTML page; `charset` is what came with it, which the page's own declaration gives way to."""
    if len(raw) > _PAGE_BYTES:
        return Record(None, source_id, f"too_large: more than {_PAGE_BYTES:,} bytes of HTML")
    html = _decoded(raw, charset)
    if html is None:
        return Record(None, source_id, "encoding: neither in the encoding that it declares nor in UTF-8")
    import trafilatura  # half a second, which who reads no page need not pay

    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # what it says of each page is in the reason
    try:
        text = trafilatura.extract(html.replace("\0", ""), favor_precision=True, include_comments=False, deduplicate=False)
    except Exception as error:  # a parser of hostile input: whatever it stumbles over is this page's problem, not the run's
        return Record(None, source_id, f"page: {type(error).__name__}")  # what it says may hold addresses, others in each process
    text = (text or "").strip()
    return Record(text, source_id) if text else Record(None, source_id, "no_main_text: no main text was found in the page")


def _decoded(raw: bytes, charset: str) -> str | None:
    """The page as text: UTF-8 if it is that, whatever it says; else what came with it, its own declaration, or windows-1252.

    Bytes that are valid UTF-8 by chance are all but impossible, but for ASCII, where a declaration such as ISO-2022-JP goes first.
    """
    marked = [name for mark, name in _BOMS if raw.startswith(mark)]
    named = _META_CHARSET.search(raw, 0, _META_WITHIN)
    own = (named[1] or named[2]).decode("ascii", "replace") if named else ""
    declared = [_READ_AS.get(label.lower(), label) for label in (charset, own) if label]
    for label in dict.fromkeys([*marked, *declared * raw.isascii(), "utf-8", *(declared or ["cp1252"])]):
        try:
            if codecs.lookup(label).name not in _NO_PAGES:
                return raw.decode(label).removeprefix("\ufeff")
        except (LookupError, UnicodeError):
            continue
    return None


def _archived(record: ArcWarcRecord) -> Record:
    """What an archived record holds, if it is a page."""
    address = (record.rec_headers.get_header("WARC-Target-URI") or "").strip("<>").encode(errors="backslashreplace").decode() or None
    if record.rec_type != "response":
        return Record(None, address, f"not_response: a {record.rec_type} record {address or ''}")
    if (record.length or 0) > _PAGE_BYTES:
        return Record(None, address, f"too_large: {record.length:,} bytes: {address}")
    try:
        return _response(record, address)
    except (EOFError, ValueError, zlib.error, ChunkedDataException) as error:
        return Record(None, address, f"http: {type(error).__name__}: {error}: {address}")


def _response(record: ArcWarcRecord, address: str | None) -> Record:
    record.http_headers = headers = StatusAndHeadersParser([], verify=False).parse(record.raw_stream)
    kind, status = (headers.get_header("Content-Type") or "").lower(), headers.get_statuscode()
    if status != "200":
        return Record(None, address, f"not_ok: status {status}: {address}")
    if not kind.startswith(_HTML):
        return Record(None, address, f"not_html: {kind or 'no content type'}: {address}")
    packed = (headers.get_header("Content-Encoding") or "").lower()
    if packed not in ("", "identity", "gzip", "x-gzip", "deflate"):
        return Record(None, address, f"encoding: packed as {packed}: {address}")
    raw = record.content_stream().read(_PAGE_BYTES + 1)
    if getattr(record.raw_stream, "limit", 0) and not record.raw_stream.read(1):  # more was promised, and the archive ends
        return Record(None, address, f"truncated: {record.raw_stream.limit:,} bytes are missing: {address}")
    named = _HEADER_CHARSET.search(kind)
    read = page(raw, named[1] if named else "", address)
    return replace(read, date=seconds_since_1970(record.rec_headers.get_header("WARC-Date")))
