"""Ways to spoil a request, from a flipped bit to a bomb. Each takes bytes and a random source, and nothing else."""

from collections.abc import Callable, Sequence
from random import Random

from tests.xds.fuzz.corpus import Corpus, Method, block

Mutation = Callable[[Random, bytes], bytes]

_HUGE = (b"\xff" * 9 + b"\x01", b"\xff" * 11, b"\xff\xff\xff\xff\x0f", b"\x80" * 9 + b"\x01", b"\x80\x80\x80\x01")
_TEXTS = (b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\x00")
_BYTES = (0x00, 0x01, 0x7F, 0x80, 0xFF, 0x0A, 0x12, 0x1A, 0x22, 0x2A, 0x32)


def _place(rng: Random, data: bytes) -> int:
    """Choose a place, mostly near the beginning: that is where the fields are."""
    return rng.randint(0, min(len(data), 64) if rng.random() < 0.7 else len(data))


def flip_bits(rng: Random, data: bytes) -> bytes:
    spoilt = bytearray(data)
    for _ in range(rng.randint(1, 8) if spoilt else 0):
        spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
    return bytes(spoilt)


def overwrite(rng: Random, data: bytes) -> bytes:
    at = _place(rng, data)
    return data[:at] + bytes((rng.choice(_BYTES),)) + data[at + 1 :]


def truncate(rng: Random, data: bytes) -> bytes:
    return data[: rng.randint(0, len(data))]


def cut_out(rng: Random, data: bytes) -> bytes:
    at = _place(rng, data)
    return data[:at] + data[at + rng.randint(1, 20) :]


def repeat(rng: Random, data: bytes) -> bytes:
    """Say a part twice: where it hits the bounds of a field, the field is there twice."""
    at = _place(rng, data)
    return data[:at] + data[at : at + rng.randint(1, 200)] * rng.randint(2, 4) + data[at:]


def whole_twice(_rng: Random, data: bytes) -> bytes:
    return data + data


def insert_noise(rng: Random, data: bytes) -> bytes:
    at = _place(rng, data)
    return data[:at] + rng.randbytes(rng.randint(1, 30)) + data[at:]


def insert_huge_number(rng: Random, data: bytes) -> bytes:
    at = _place(rng, data)
    return data[:at] + rng.choice(_HUGE) + data[at + rng.randint(0, 1) :]


def insert_bad_text(rng: Random, data: bytes) -> bytes:
    at, text = _place(rng, data), rng.choice(_TEXTS)
    return data[:at] + text + data[at + len(text) :]


def bomb_of_length(rng: Random, data: bytes) -> bytes:
    """Announce more than there is."""
    return data + bytes((rng.choice(_BYTES),)) + rng.choice(_HUGE)


def nest(rng: Random, data: bytes) -> bytes:
    """Wrap node metadata in itself, up to far beyond what anyone may nest; the node comes first."""
    value = b"\x1a\x01x"
    for _ in range(rng.choice((3, 50, 99, 100, 101, 300, 2000))):
        value = block(0x32, block(0x0A, value)) if rng.random() < 0.5 else _struct(value)
    metadata = block(0x1A, _entry(value))
    body = block(0x0A, b"fuzz-1") + block(0x12, b"fuzz") + metadata
    return block(rng.choice((0x0A, 0x12)), body) + data


def many_names(rng: Random, data: bytes) -> bytes:
    tag = rng.choice((0x1A, 0x22))
    names = [f"name-{n}".encode() for n in range(rng.choice((10, 200, 200, 3000)))]
    return data + b"".join(block(tag, name) for name in names)


def noise(rng: Random, _data: bytes) -> bytes:
    return rng.randbytes(rng.choice((0, 1, 2, 10, 100, 2000)))


def _entry(value: bytes) -> bytes:
    return block(0x0A, block(0x0A, b"k") + block(0x12, value))


def _struct(value: bytes) -> bytes:
    return block(0x2A, _entry(value))


OFTEN: Sequence[Mutation] = (
    flip_bits,
    overwrite,
    truncate,
    cut_out,
    repeat,
    whole_twice,
    insert_noise,
    insert_huge_number,
    insert_bad_text,
    bomb_of_length,
    noise,
)
SELDOM: Sequence[Mutation] = (nest, many_names)


def spoilt(rng: Random, corpus: Corpus, method: Method, requests: list[bytes]) -> list[bytes]:
    """Spoil a conversation: its bytes, what it says, or the order in which it says so."""
    requests = list(requests)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(requests))
        match rng.random():
            case chance if chance < 0.30:
                requests[at] = rng.choice(OFTEN)(rng, requests[at])
            case chance if chance < 0.31:
                requests[at] = rng.choice(SELDOM)(rng, requests[at])
            case chance if chance < 0.37:
                other = rng.choice(requests)
                requests[at] = requests[at][: _place(rng, requests[at])] + other[_place(rng, other) :]
            case chance if chance < 0.50:
                requests[at : at + 1] = [requests[at]] * rng.randint(2, 5)
            case chance if chance < 0.55:
                rng.shuffle(requests)
            case _:
                requests[at + 1 : at + 1] = [corpus.invention(rng, method) for _ in range(rng.randint(1, 6))]
    return requests
