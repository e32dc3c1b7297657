"""For how long the certificates in a resource are good; a reader of X.509, not a judge of trust.

Only what stands inline can be read: a file is the proxy's. Whether renewal is due depends on the time (`is_due`),
what a certificate says does not.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from envoy_data_plane.envoy.config.core.v3 import DataSource
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import TlsCertificate

from controlplane.raw.reading import Part

_PEM = b"-----BEGIN CERTIFICATE-----"
_LEFT = 1 / 3
"""The part of a lifetime in which renewal is due: those who renew by themselves do so at two thirds."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """Say from when to when a certificate is good, in seconds since the epoch, and whose it is."""

    subject: str
    not_before: float
    not_after: float


@dataclass(frozen=True, slots=True)
class NoCertificate:
    """Say why an inline certificate cannot be read; whoever uses it will refuse it too."""

    why: str


def certificates(parts: Iterable[Part]) -> tuple[Certificate | NoCertificate, ...]:
    """Read the inline certificates among the messages of a resource, chains in full."""
    found: list[Certificate | NoCertificate] = []
    for part in parts:
        if isinstance(part.message, TlsCertificate):
            chain = part.message.certificate_chain
            content = b"" if chain is None else _inline(chain)
            if content:
                found += _read(content)
    return tuple(found)


def _inline(source: DataSource) -> bytes:
    return source.inline_bytes or (source.inline_string or "").encode()


def _read(content: bytes) -> list[Certificate | NoCertificate]:
    # Costs a quarter of a second and some megabytes, which who has no inline certificate need not pay.
    from cryptography import x509  # noqa: PLC0415

    if _PEM not in content:
        return [NoCertificate(f"no {_PEM.decode()} in it")]
    try:
        read = x509.load_pem_x509_certificates(content)
    except ValueError as error:
        return [NoCertificate(str(error).partition("\n")[0])]
    return [
        Certificate(
            subject=each.subject.rfc4514_string() or f"serial number {each.serial_number:x}",
            not_before=each.not_valid_before_utc.timestamp(),
            not_after=each.not_valid_after_utc.timestamp(),
        )
        for each in read
    ]


def is_due(certificate: Certificate, now: float) -> bool:
    """Tell whether a certificate ought to be renewed: a third of its lifetime is left, or less."""
    return certificate.not_after - now <= _LEFT * (certificate.not_after - certificate.not_before)
