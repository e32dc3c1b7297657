"""The gRPC health service as a handler for a port that is not its own: the xDS server's.

What `grpc_health` generates parses requests outside of its own code, where bytes that are none are an "unexpected"
error with a traceback in the log. Here they are the client's fault, and it is told so.
"""

from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health as grpc_health
from grpc_health.v1 import health_pb2


def health_handler(servicer: grpc_health.aio.HealthServicer) -> grpc.GenericRpcHandler:
    """Make the health service a handler for any gRPC server."""

    async def check(data: bytes, context: Any) -> Any:
        return await servicer.Check(await _request(data, context), context)

    async def watch(data: bytes, context: Any) -> None:
        await servicer.Watch(await _request(data, context), context)

    to_bytes = health_pb2.HealthCheckResponse.SerializeToString
    return grpc.method_handlers_generic_handler(
        "grpc.health.v1.Health",
        {
            "Check": grpc.unary_unary_rpc_method_handler(check, response_serializer=to_bytes),
            "Watch": grpc.unary_stream_rpc_method_handler(watch, response_serializer=to_bytes),
        },
    )


async def _request(data: bytes, context: Any) -> Any:
    try:
        return health_pb2.HealthCheckRequest.FromString(data)
    except DecodeError as error:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"the request is no HealthCheckRequest: {error}")
