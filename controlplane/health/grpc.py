"""Check by the gRPC health checking protocol: `grpc.health.v1.Health/Check` answers SERVING, or it fails.

Plaintext only. The protocol: github.com/grpc/grpc, doc/health-checking.md.
"""

import time
from collections.abc import Callable

import grpc
from grpc_health.v1 import health_pb2

from controlplane.health import OUTPUT_LIMIT_BYTES, Outcome, OutcomeKind
from controlplane.health.attempt import Answer, attempt, readable
from controlplane.model import HealthCheck, Instance

_METHOD = "/grpc.health.v1.Health/Check"


class GrpcProbe:
    """Ask the instance's health service for `grpc_service`.

    A channel per check, closed with it: a kept channel would reconnect, back off and answer from its own state,
    and ten thousand of them would hold as many connections.
    """

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock

    async def __call__(self, instance: Instance, address: str, timeout_s: float) -> Outcome:
        """Pass where the instance answers SERVING."""
        return await attempt(_check(instance, address, timeout_s), timeout_s, self._clock)


async def _check(instance: Instance, address: str, timeout_s: float) -> Answer:
    service = (instance.health_check or HealthCheck()).grpc_service
    target = f"ipv6:[{address}]:{instance.port}" if ":" in address else f"ipv4:{address}:{instance.port}"
    host = f"[{instance.host}]" if ":" in instance.host else instance.host
    options = [
        ("grpc.default_authority", f"{host}:{instance.port}"),
        ("grpc.enable_http_proxy", 0),  # a check speaks of the instance, not of a proxy in our environment
        ("grpc.enable_retries", 0),
        ("grpc.use_local_subchannel_pool", 1),  # or the next channel to this address inherits its back-off
        ("grpc.max_receive_message_length", OUTPUT_LIMIT_BYTES),
    ]
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        call = channel.unary_unary(
            _METHOD,
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            response = await call(health_pb2.HealthCheckRequest(service=service), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            return OutcomeKind.FAIL, _describe(error)
    status = response.status
    if status == health_pb2.HealthCheckResponse.SERVING:
        return OutcomeKind.PASS, "SERVING"
    known = status in health_pb2.HealthCheckResponse.ServingStatus.values()
    return OutcomeKind.FAIL, health_pb2.HealthCheckResponse.ServingStatus.Name(status) if known else f"status {status}"


def _describe(error: grpc.aio.AioRpcError) -> str:
    """Put a failed call into words. Raises TimeoutError for a passed deadline, which `attempt` understands."""
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        raise TimeoutError
    if code is grpc.StatusCode.UNAVAILABLE and "Connection refused" in details:
        return "connection refused"
    return readable(f"{code.name}: {details}".encode())
