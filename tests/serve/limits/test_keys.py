import hashlib
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.limits import keys
from serve.limits.keys import ApiKey, digest, digests, find, parse_keys, presented, read_keys

SECRET, OTHER = "sk-this-is-a-secret", "sk-this-is-another-one"
TOML = f"""
[team-a]
key = "{SECRET}"
requests_per_minute = 600
tokens_per_minute = 100_000
max_streams = 32

[team-b]
sha256 = "{hashlib.sha256(OTHER.encode()).hexdigest()}"
"""


def test_keys_with_limits_from_toml() -> None:
    first, second = parse_keys(TOML, where="keys.toml")
    assert (first.name, first.requests_per_minute, first.tokens_per_minute, first.max_streams) == ("team-a", 600, 100_000, 32)
    assert (second.name, second.requests_per_minute, second.max_streams) == ("team-b", None, None)
    assert find((first, second), SECRET) is first
    assert find((first, second), OTHER) is second


def test_keys_alone_from_the_environment_and_from_a_file(tmp_path: Path) -> None:
    found = read_keys("env:KEYS", {"KEYS": f"{SECRET},{OTHER}\n"})
    (tmp_path / "keys").write_text(f"{SECRET}\n{OTHER}\n")
    assert found == read_keys(str(tmp_path / "keys"), {})
    assert [key.name for key in found] == ["key-1", "key-2"]
    assert find(found, OTHER) is found[1]


def test_an_environment_variable_that_was_read_holds_digests_only_and_means_the_same() -> None:
    for text in (f"{SECRET},{OTHER}", TOML):
        environment = {"KEYS": text, "HOME": "here"}
        found = read_keys("env:KEYS", environment)
        assert SECRET not in environment["KEYS"]
        assert OTHER not in environment["KEYS"]
        assert read_keys("env:KEYS", environment) == found
        assert environment["HOME"] == "here"


LIMIT = st.none() | st.integers(1, 10**6)


@given(st.dictionaries(st.text(), st.tuples(LIMIT, LIMIT, LIMIT), min_size=1, max_size=4))
def test_digests_read_back_as_the_keys_they_are_of(limits: dict[str, tuple[int | None, int | None, int | None]]) -> None:
    ring = tuple(ApiKey(name, digest(name), *each) for name, each in limits.items())
    assert parse_keys(digests(ring), where="here") == ring


@pytest.mark.parametrize("limit", ["requests_per_minute", "tokens_per_minute", "max_streams"])
def test_a_limit_that_gateways_cannot_share_is_refused(limit: str, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f'[team]\nkey = "{SECRET}"\n{limit} = 2\n')
    assert read_keys(str(tmp_path / "keys"), {}, num_gateways=2)
    with pytest.raises(ValueError, match=f"api_keys: team: {limit} = 2 cannot be shared by 3 gateways; make it 3 or more, or gateways = 2"):
        read_keys(str(tmp_path / "keys"), {}, num_gateways=3)


@given(st.text(min_size=1), st.integers(0, 3))
def test_only_the_very_key_is_found(guess: str, number: int) -> None:
    secrets = [f"sk-number-{n}-of-the-keys" for n in range(4)]
    ring = parse_keys(" ".join(secrets), where="here")
    assert find(ring, secrets[number]) is ring[number]
    assert (find(ring, guess) is None) == (guess not in secrets)
    assert find(ring, None) is None
    assert find((), guess) is None


@pytest.mark.parametrize("guess", [None, "", "sk-wrong", SECRET, OTHER, SECRET[:-1]])
def test_every_key_is_compared_whatever_is_presented(guess: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which key it is, and whether it is one, shows in no number of comparisons, nor in where they stop."""
    compared = []
    compare = keys.hmac.compare_digest
    monkeypatch.setattr(keys.hmac, "compare_digest", lambda a, b: compared.append(len(a)) or compare(a, b))
    find(parse_keys(TOML, where="keys.toml"), guess)
    assert compared == [32, 32]


def test_no_record_holds_a_key() -> None:
    ring = parse_keys(TOML, where="keys.toml")
    seen = repr(ring).encode() + pickle.dumps(ring)
    for secret in (SECRET, OTHER):
        assert secret.encode() not in seen
        assert digest(secret).hex() not in repr(ring)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "holds no key"),
        (" , \n", "holds no key"),
        ("sk-short", "key 1: a key is at least 16"),
        (f"{SECRET} sk-täglich-geheime-schlüssel", "key 2: a key is at least 16"),
        (f"{SECRET},{SECRET}", "a key is there twice"),
        ('[a]\nkey = "sk-this-is-a-secret\n', r"is no TOML \(at line 2, column"),
        (f'x = "{SECRET}"\n[a]\nkey = "{OTHER}"', "x: stands outside a table"),
        ("[a]\n", "a: needs either key or sha256"),
        (f'[a]\nkey = "{SECRET}"\nsha256 = "{"0" * 64}"', "a: needs either key or sha256"),
        (f'[a]\nkey = "{SECRET}"\nlimit = 3', "a: unknown entry 'limit'"),
        (f'[a]\nkey = "{SECRET}"\nmax_streams = 0', "a: max_streams must be a whole number"),
        (f'[a]\nkey = "{SECRET}"\nmax_streams = true', "a: max_streams must be a whole number"),
        (f'[a]\nsha256 = "{SECRET}"', "a: sha256 is 64 hexadecimal digits"),
        ('[a]\nkey = "sk with spaces and more"', "a: a key is at least 16"),
        ("[a]\nkey = 12345678901234567890", "a: a key is at least 16"),
    ],
)
def test_mistakes_are_one_line_without_a_key(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=f"api_keys: keys.toml: .*{complaint}|api_keys: keys.toml: {complaint}") as caught:
        parse_keys(text, where="keys.toml")
    assert "\n" not in str(caught.value)
    assert "this-is" not in str(caught.value)
    assert "spaces" not in str(caught.value)


def test_a_source_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="environment variable KEYS is not set"):
        read_keys("env:KEYS", {})
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for source in (SECRET, str(tmp_path / "binary"), "\0"):
        with pytest.raises(ValueError, match="api_keys: there is no such file of text") as caught:
            read_keys(source, {})
        assert source not in str(caught.value)  # for it may be a key
    with pytest.raises(ValueError, match="cannot be read"):
        read_keys(str(tmp_path), {})


@pytest.mark.parametrize(
    ("header", "key"),
    [
        *[(None, None), ("", None), ("Bearer", None), ("Bearer  ", None), ("bearer x", "x"), ("Digest x", None), ("Bearer a b", "a b")],
        *[("Basic dXNlcjpzay0x", "sk-1"), ("basic c2stMQ==", None), ("Basic ===", None), ("Basic \xff", None), ("Basic /////w==", None)],
    ],
)
def test_the_key_in_a_header(header: str | None, key: str | None) -> None:
    assert presented(header) == key


def test_a_key_is_a_value() -> None:
    assert ApiKey("a", digest(SECRET)) == ApiKey("a", digest(SECRET))
