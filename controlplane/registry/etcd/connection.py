"""The way to one member of etcd: channel, certificates, and what its errors mean to an operator.

aetcd brings the messages and stubs; the channel is ours, for aetcd's own client knows no certificates.
"""

from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio
from aetcd import rpc

from controlplane.registry.etcd.renewals import Renewals

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 10_000),  # etcd takes more than one ping in 5 s for an attack
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
)

_REASON_MAX = 300
"""Characters of etcd's own words that are told."""


class Failed(Exception):
    """Report that etcd could not be asked, or refused; the message is for the operator and holds no secret."""


class LeaseGone(Failed):
    """Report that a lease has run out, or was revoked."""


class Compacted(Failed):
    """Report that etcd has forgotten the history that was asked for; everything has to be listed again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Hold how etcd is told who we are, and how we know that it is etcd. Files are PEM."""

    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None


class Member:
    """Hold the channel to one member, which connects by itself, and again, and the services behind it."""

    def __init__(self, endpoint: str, credentials: Credentials) -> None:
        scheme, _, address = endpoint.rpartition("://")
        self.endpoint = endpoint
        self.channel = _channel(address.rstrip("/"), scheme, credentials)
        self.kv = rpc.KVStub(self.channel)
        self.watch = rpc.WatchStub(self.channel)
        self.lease = rpc.LeaseStub(self.channel)
        self.auth = rpc.AuthStub(self.channel)
        self.renewals = Renewals(self.lease)

    async def close(self) -> None:
        """End everything that is under way."""
        await self.renewals.close()
        await self.channel.close()


def _channel(address: str, scheme: str, credentials: Credentials) -> grpc.aio.Channel:
    files = (credentials.ca_file, credentials.key_file, credentials.cert_file)
    if scheme == "http" or (scheme == "" and files == (None, None, None)):
        return grpc.aio.insecure_channel(address, options=_OPTIONS)
    try:
        authority, key, certificate = (None if file is None else file.read_bytes() for file in files)
    except OSError as error:
        raise Failed(f"a file of ETCD_CA_FILE, ETCD_CERT_FILE, ETCD_KEY_FILE cannot be read: {error}") from error
    return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(authority, key, certificate), options=_OPTIONS)


def token_refused(error: grpc.aio.AioRpcError) -> bool:
    """Tell whether a call would be answered with a new token: this one has run out, or is of another life."""
    details = error.details() or ""
    return (
        error.code() is grpc.StatusCode.UNAUTHENTICATED
        or "revision in header is old" in details  # a right has changed since the token was made
        or "user name is empty" in details  # passwords were switched on after we had asked without
    )


def failure(endpoint: str, error: grpc.aio.AioRpcError) -> Failed:
    """Return what an error of gRPC says to the operator, with the remedy where we know it."""
    said = " ".join((error.details() or error.code().name).split())[:_REASON_MAX]
    match error.code():
        case grpc.StatusCode.NOT_FOUND if "lease not found" in said:
            return LeaseGone(f"etcd {endpoint}: {said}")
        case grpc.StatusCode.OUT_OF_RANGE if "compacted" in said:
            return Compacted(f"etcd {endpoint}: {said}")
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return Failed(f"etcd {endpoint} does not answer")
        case grpc.StatusCode.PERMISSION_DENIED:
            remedy = "; grant ETCD_USERNAME's role readwrite on the prefix that is ETCD_PREFIX without its last slash"
        case _ if "invalid user ID or password" in said:
            remedy = "; check ETCD_USERNAME and ETCD_PASSWORD"
        case _ if "user name is empty" in said:
            remedy = "; it demands a user: set ETCD_USERNAME and ETCD_PASSWORD"
        case _ if "CERTIFICATE_VERIFY_FAILED" in said:
            remedy = "; its certificate is not trusted: ETCD_CA_FILE must hold the authority that signed it"
        case _:
            remedy = ""
    return Failed(f"etcd {endpoint}: {said}{remedy}")
