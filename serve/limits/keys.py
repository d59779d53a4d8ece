"""Who may ask: API keys, read once and known from then on by their SHA-256 digests only, and what each key is allowed.

Promise: the key itself is in no record made here, so in no log, repr, error or pickle; finding one compares the digest of what was
presented with that of every key, in constant time, so a wrong key takes as long as a right one and tells nothing of how near it was.
Price: a digest and one comparison per key and request (a thousand keys: 0.2 ms). The digests are plain SHA-256, which is safe for keys that
cannot be guessed, so short ones are refused.
Source: HMAC's `compare_digest`; the forms of the file are our own:

    [team-a]                          |  or, without limits, keys alone,
    key = "sk-…"                      |  separated by commas or white space:
    requests_per_minute = 600         |
    tokens_per_minute = 100_000       |  sk-… sk-…
    max_streams = 32                  |

Instead of `key`, `sha256` may hold its digest in hexadecimal (`printf %s "$KEY" | sha256sum`), so that the file need not be a secret. In an
environment variable that was read, the digests take the keys' place: the processes that are started afterwards inherit them only.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import tomllib
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["ApiKey", "digest", "digests", "find", "parse_keys", "presented", "read_keys"]

MIN_CHARS = 16
"""A shorter key could be guessed from its digest."""
LIMITS = ("requests_per_minute", "tokens_per_minute", "max_streams")
ENVIRONMENT = "env:"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key's digest, and what may be done with it; None for no limit."""

    name: str
    """What the key is called in its file: for figures and messages, and no secret."""
    digest: bytes = field(repr=False)
    """SHA-256 of the key."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Tokens of prompts and answers together."""
    max_streams: int | None = None
    """Requests at once."""


def digest(key: str) -> bytes:
    """The SHA-256 of a key, as 32 bytes."""
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()


def presented(authorization: str | None) -> str | None:
    """The key in an Authorization header: the bearer's, or the password of a browser's or a scraper's Basic; None where there is none.

    >>> presented("Bearer sk-1234"), presented("Basic " + base64.b64encode(b"me:sk-1234").decode())
    ('sk-1234', 'sk-1234')
    """
    scheme, _, rest = (authorization or "").strip().partition(" ")
    if scheme.lower() == "basic":
        try:
            rest = base64.b64decode(rest, validate=True).decode(errors="replace").partition(":")[2]
        except ValueError:
            return None
    elif scheme.lower() != "bearer":
        return None
    return rest.strip() or None


def find(keys: Sequence[ApiKey], secret: str | None) -> ApiKey | None:
    """The key that `secret` is, or None; every key is compared, whichever it is."""
    mine = digest(secret or "")
    found = None
    for key in keys:
        if hmac.compare_digest(key.digest, mine):
            found = key  # and go on
    return found


def read_keys(source: str, environment: MutableMapping[str, str], *, num_gateways: int = 1) -> tuple[ApiKey, ...]:
    """The keys in the file `source`, or in the environment variable NAME for "env:NAME", where their digests replace them.

    ValueError in one line, which quotes no key, also for a limit that `num_gateways` cannot share.
    """
    if source.startswith(ENVIRONMENT):
        name = source.removeprefix(ENVIRONMENT)
        text = environment.get(name)
        if text is None:
            raise ValueError(f"api_keys: the environment variable {name} is not set; put the keys there, or name a file")
        keys = parse_keys(text, where=f"environment variable {name}")
        environment[name] = digests(keys)
    else:
        keys = parse_keys(_text(source), where=source)
    for key in keys:
        _check_shares(key, num_gateways)
    return keys


def digests(keys: Sequence[ApiKey]) -> str:
    """The keys as a text that `parse_keys` reads and that holds their digests only."""
    tables = []
    for key in keys:
        name = json.dumps(key.name, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML's strings are JSON's but for that
        limits = "".join(f"{limit} = {value}\n" for limit in LIMITS if (value := getattr(key, limit)) is not None)
        tables.append(f'[{name}]\nsha256 = "{key.digest.hex()}"\n{limits}')
    return "\n".join(tables)


def _text(source: str) -> str:
    try:
        return Path(source).read_text()
    except (FileNotFoundError, ValueError):  # what is no file may be a key: it is not repeated
        raise ValueError("api_keys: there is no such file of text; name the file of the keys, or env:NAME, not a key itself") from None
    except OSError as error:
        raise ValueError(f"api_keys: {source}: cannot be read ({error.strerror})") from None


def _check_shares(key: ApiKey, num_gateways: int) -> None:
    """ValueError where some gateway's share would be less than one: it could let nobody in, or all of them more than the limit."""
    for limit in LIMITS:
        value = getattr(key, limit)
        if value is not None and value < num_gateways:
            raise ValueError(
                f"api_keys: {key.name}: {limit} = {value} cannot be shared by {num_gateways} gateways; "
                f"make it {num_gateways} or more, or gateways = {value}"
            )


def parse_keys(text: str, *, where: str) -> tuple[ApiKey, ...]:
    """The keys in a text. ValueError for none, for one that is short or twice there, and for what is not understood."""
    if re.search(r"^\s*\[", text, re.MULTILINE):
        keys = tuple(_key(name, table, f"{where}: {name}") for name, table in _tables(text, where).items())
    else:
        secrets = re.split(r"[\s,]+", text.strip(", \t\r\n"))
        keys = tuple(ApiKey(f"key-{n}", _digest_of(key, f"{where}: key {n}")) for n, key in enumerate(secrets, 1) if key)
    if not keys:
        raise ValueError(f"api_keys: {where}: holds no key; write one, or leave api_keys out to let everyone in")
    if len({key.digest for key in keys}) < len(keys):
        raise ValueError(f"api_keys: {where}: a key is there twice; give each name its own")
    return keys


def _tables(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"\(at [^)]*\)", str(error))  # the rest may quote a key
        raise ValueError(f"api_keys: {where}: is no TOML {place.group() if place else ''}".rstrip()) from None


def _key(name: str, table: Any, where: str) -> ApiKey:
    if not isinstance(table, dict):
        raise ValueError(f"api_keys: {where}: stands outside a table; write [name] above it")
    unknown = sorted(table.keys() - {"key", "sha256", *LIMITS})
    if unknown:
        raise ValueError(f"api_keys: {where}: unknown entry {unknown[0]!r}; known: key, sha256, {', '.join(LIMITS)}")
    if ("key" in table) == ("sha256" in table):
        raise ValueError(f"api_keys: {where}: needs either key or sha256")
    for limit in LIMITS:
        value = table.get(limit, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"api_keys: {where}: {limit} must be a whole number of at least 1; leave it out for no limit")
    secret = _digest_of(table["key"], where) if "key" in table else _from_hex(table["sha256"], where)
    return ApiKey(name, secret, **{limit: table.get(limit) for limit in LIMITS})


def _digest_of(key: Any, where: str) -> bytes:
    if not isinstance(key, str) or len(key) < MIN_CHARS or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"api_keys: {where}: a key is at least {MIN_CHARS} printable ASCII characters without a space")
    return digest(key)


def _from_hex(text: Any, where: str) -> bytes:
    if not isinstance(text, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise ValueError(f"api_keys: {where}: sha256 is 64 hexadecimal digits")
    return bytes.fromhex(text)
