"""How the Kubernetes API is reached: by a kubeconfig, or from inside a cluster, as the official client reads them.

Read again each time that access is renewed, so that a rotated token or a new file is taken up without a restart.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import ConfigException, list_kube_config_contexts, load_kube_config
from kubernetes.aio.config.incluster_config import SERVICE_HOST_ENV_NAME, InClusterConfigLoader

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where Kubernetes puts a pod's token, the cluster's CA and the pod's namespace."""

DEFAULT_NAMESPACE = "default"


class AccessError(Exception):
    """Report that the configuration does not say how to reach the API; the message never holds a secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Say where to look for the configuration: `kubeconfig`, else inside a cluster, else `~/.kube/config`.

    `kubeconfig` is as KUBECONFIG is: a path, or several with ':' between them. `environ` has KUBERNETES_SERVICE_HOST
    and _PORT inside a cluster.
    """

    kubeconfig: str | None = None
    environ: Mapping[str, str]
    service_account: Path = SERVICE_ACCOUNT

    @property
    def in_cluster(self) -> bool:
        """Tell whether it is the service account of a pod that is used."""
        return not self.kubeconfig and bool(self.environ.get(SERVICE_HOST_ENV_NAME))

    def namespace(self) -> str:
        """Return our own namespace: the pod's, else that of the kubeconfig's context, else `default`.

        Raises AccessError.
        """
        if self.in_cluster:
            try:
                return (self.service_account / "namespace").read_text(encoding="utf-8").strip() or DEFAULT_NAMESPACE
            except (OSError, UnicodeDecodeError) as error:
                raise AccessError(f"the pod's namespace cannot be read: {error}") from None
        try:
            _, current = list_kube_config_contexts(self._files())
            return str(current["context"].get("namespace") or DEFAULT_NAMESPACE)
        except (ConfigException, yaml.YAMLError, OSError, LookupError, TypeError) as error:
            raise AccessError(self._said(error)) from None

    async def configuration(self) -> Configuration:
        """Return the client's configuration as it is now; of a pod's token it reads each new version by itself.

        Raises AccessError.
        """
        configuration = Configuration()
        configuration.connection_pool_maxsize = 0  # without bound: each watch has a connection of its own
        try:
            if self.in_cluster:
                InClusterConfigLoader(
                    token_filename=str(self.service_account / "token"),
                    cert_filename=str(self.service_account / "ca.crt"),
                    environ=self.environ,
                ).load_and_set(configuration)
            else:
                await load_kube_config(self._files(), client_configuration=configuration, persist_config=False)
        except (ConfigException, yaml.YAMLError, OSError, LookupError, TypeError, ValueError) as error:
            raise AccessError(self._said(error)) from None
        return configuration

    def _files(self) -> str:
        return self.kubeconfig or str(Path("~/.kube/config").expanduser())

    def _said(self, error: Exception) -> str:
        where = f"service account {self.service_account}" if self.in_cluster else f"kubeconfig {self._files()}"
        if isinstance(error, yaml.YAMLError):  # whose own words show the lines around, a token perhaps
            mark = getattr(error, "problem_mark", None)
            return f"{where}: not YAML" + (f" in line {mark.line + 1}" if mark is not None else "")
        if not self.in_cluster and not any(Path(each).exists() for each in self._files().split(":")):
            return f"{where}: there is no such file"
        if isinstance(error, ConfigException | OSError):
            return f"{where}: {' '.join(str(error).split())}"
        return f"{where}: not what the client expects ({type(error).__name__})"
