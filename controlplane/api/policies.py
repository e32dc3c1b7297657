"""The traffic policy of a service: read what is in force, set it, take it back to the default."""

import orjson
from aiohttp import web

from controlplane.api.bodies import POLICY, POLICY_READ_ONLY, read_object
from controlplane.api.edge import Edge, Rendered, hashed, require
from controlplane.api.operations import BASE, CONDITIONAL, Answer, Body, Operation, shown
from controlplane.api.parameters import CREATE_ONLY, IF_MATCH, SERVICE, read_query
from controlplane.api.problems import (
    INVALID,
    MALFORMED,
    PRECONDITION_FAILED,
    REGISTRY_UNAVAILABLE,
    TOO_LARGE,
    UNKNOWN_SERVICE,
    UNSUPPORTED_MEDIA_TYPE,
    Fault,
    invalid,
)
from controlplane.api.reading import known_service
from controlplane.api.views import PolicyView, policy_view
from controlplane.api.writing import ask, until
from controlplane.catalog import Service
from controlplane.model import SERVICE_NAME, ServiceName
from controlplane.policy import Policy

POLICIES = "policies"


def _render(edge: Edge, service: Service) -> Rendered:
    """Show a policy; tagged by content, since a service's revision moves with its instances too."""
    return hashed(orjson.dumps(policy_view(service)), edge.context.live.label(service.revision))


def _own_tag(edge: Edge, name: ServiceName) -> str | None:
    """Return the ETag of the service's own policy, None where it has none."""
    service = edge.context.live.current.services.get(name)
    return None if service is None or service.own_policy is None else _render(edge, service).etag


async def get_policy(edge: Edge, request: web.Request) -> web.Response:
    """Answer with the policy in force: the service's own, or the default."""
    read_query(request, ())
    name = request.match_info["name"]
    return await edge.answer(request, ServiceName(name), lambda: _render(edge, known_service(edge, name)))


async def put_policy(edge: Edge, request: web.Request) -> web.Response:
    """Give the service the policy in the body."""
    read_query(request, ())
    name = ServiceName(request.match_info["name"])
    if len(name) > 253 or not SERVICE_NAME.fullmatch(name):
        raise invalid([Fault(parameter="name", detail=f"must be a lower-case DNS name, found {name!r}")])
    policy = POLICY.build(await read_object(request))
    live = edge.context.live
    async with edge.policy_writes:  # nobody writes between the check of If-Match and the write that relies on it
        require(request, _own_tag(edge, name))
        new = await ask(edge, "put_policy", edge.context.registry.put_policy(name, policy))
        revision = await until(edge, name, lambda: _own(edge, name) == policy)
    shown_service = Service(name=name, own_policy=policy, revision=revision or 0)
    rendered = _render(edge, shown_service)
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    if revision is not None:
        headers |= {"ETag": rendered.etag, "Revision": live.label(revision)}
    status = 202 if revision is None else 201 if new else 200
    if status != 200:
        headers["Location"] = f"{BASE}/services/{name}/policy"
    return web.Response(status=status, body=rendered.body, headers=headers)


async def delete_policy(edge: Edge, request: web.Request) -> web.Response:
    """Take the service back to the default policy; the same answer where it has none of its own."""
    read_query(request, ())
    name = ServiceName(request.match_info["name"])
    async with edge.policy_writes:
        require(request, _own_tag(edge, name))
        await ask(edge, "delete_policy", edge.context.registry.delete_policy(name))
        revision = await until(edge, name, lambda: _own(edge, name) is None)
    if revision is None:
        return web.Response(status=202, headers={"Location": f"{BASE}/services/{name}/policy"})
    return web.Response(status=204, headers={"Revision": edge.context.live.label(revision)})


def _own(edge: Edge, name: ServiceName) -> Policy | None:
    service = edge.context.live.current.services.get(name)
    return None if service is None else service.own_policy


_PATH = f"{BASE}/services/{{name}}/policy"
_WRITTEN = ("ETag", "Revision")

OPERATIONS = (
    Operation(
        method="GET",
        path=_PATH,
        id="getPolicy",
        group=POLICIES,
        summary="Get the traffic policy in force",
        description="`default` says that the service has none of its own.",
        handler=get_policy,
        parameters=(SERVICE, *CONDITIONAL),
        answers=shown(PolicyView, "The policy."),
        problems=(INVALID, UNKNOWN_SERVICE),
    ),
    Operation(
        method="PUT",
        path=_PATH,
        id="putPolicy",
        group=POLICIES,
        summary="Set the traffic policy",
        description="Replaces the whole policy: what is left out gets its default. The service needs no instances.",
        handler=put_policy,
        parameters=(SERVICE, IF_MATCH, CREATE_ONLY),
        body=Body(
            model=Policy,
            example={
                "strategy": "consistent_hash",
                "consistent_hash": {"hash_on": {"source": "header", "name": "x-user"}},
            },
            read_only=POLICY_READ_ONLY,
        ),
        answers=(
            Answer(
                status=201,
                description="Stored; the service had none of its own.",
                models=(PolicyView,),
                headers=("Location", *_WRITTEN),
            ),
            Answer(
                status=200, description="Stored, in place of the one before.", models=(PolicyView,), headers=_WRITTEN
            ),
            Answer(
                status=202,
                description="Stored, but this process's catalog does not show it yet.",
                models=(PolicyView,),
                headers=("Location",),
            ),
        ),
        problems=(INVALID, MALFORMED, TOO_LARGE, UNSUPPORTED_MEDIA_TYPE, PRECONDITION_FAILED, REGISTRY_UNAVAILABLE),
    ),
    Operation(
        method="DELETE",
        path=_PATH,
        id="deletePolicy",
        group=POLICIES,
        summary="Go back to the default policy",
        handler=delete_policy,
        parameters=(SERVICE, IF_MATCH),
        answers=(
            Answer(status=204, description="The service has no policy of its own.", headers=("Revision",)),
            Answer(
                status=202,
                description="Removed, but this process's catalog does not show it yet.",
                headers=("Location",),
            ),
        ),
        problems=(INVALID, PRECONDITION_FAILED, REGISTRY_UNAVAILABLE),
    ),
)
