"""Documents on their way into ConfigMaps: one each, made or replaced by compare-and-swap."""

from http import HTTPStatus

from controlplane.registry import RegistryError, RegistryUnavailable
from controlplane.registry.documents import Document
from controlplane.registry.kubernetes.api import Api, ApiFailure, Collection, Refused
from controlplane.registry.kubernetes.commons import Commons, config_map, object_name

_TRIES = 5
"""How often one write is tried that other control planes keep overtaking."""

_FOR_EVER = (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY)
"""The answers that will be the same at every try."""


class Documents:
    """Write documents one by one, each answered when the cluster has it."""

    def __init__(self, api: Api, maps: Collection, commons: Commons) -> None:
        self._api = api
        self._maps = maps
        self._commons = commons

    async def store(self, document: Document) -> bool:
        """Store a document, whatever was there; return whether it is new.

        Raises RegistryUnavailable, RegistryError where the cluster will never take it.
        """
        name = object_name(document.path)
        version, _ = self._commons.held(name)
        try:
            for _ in range(_TRIES):
                try:
                    return await self._write(name, document, version)
                except Refused as refused:
                    if refused.status not in (HTTPStatus.CONFLICT, HTTPStatus.NOT_FOUND):
                        raise
                    version = await self._stored_version(name)
        except ApiFailure as failure:
            raise _write_error(failure) from None
        raise RegistryUnavailable(f"others kept changing {document.path} at the same time; repeat it")

    async def remove(self, path: str) -> bool:
        """Remove a document; return whether there was one. Raises as `store` does."""
        try:
            return await self._api.delete(self._maps, object_name(path))
        except ApiFailure as failure:
            raise _write_error(failure) from None

    async def _write(self, name: str, document: Document, version: str | None) -> bool:
        thing = config_map(document, version)
        if version is None:
            await self._api.create(self._maps, thing)
        else:
            await self._api.replace(self._maps, name, thing)
        return version is None

    async def _stored_version(self, name: str) -> str | None:
        try:
            thing = await self._api.get(self._maps, name)
        except Refused as refused:
            if refused.status == HTTPStatus.NOT_FOUND:
                return None
            raise
        return str(thing["metadata"]["resourceVersion"])


def _write_error(failure: ApiFailure) -> RegistryError:
    if isinstance(failure, Refused) and failure.status in _FOR_EVER:
        return RegistryError(str(failure))
    return RegistryUnavailable(f"{failure}; nothing was stored")
