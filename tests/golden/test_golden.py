"""What a file of services becomes, resource by resource, and whether the real Envoy takes it.

A case is a folder with `in.yaml`; its outputs are written by `pytest tests/golden --update-golden` and reviewed
like code. An output without its case is a failure, or deleted with the flag.
"""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from accepted import complaints
from envoys import EVERY_ENVOY

from controlplane.render import load, render
from controlplane.translate.decode import KINDS, documents

HERE = Path(__file__).parent
CASES = sorted(path.parent.name for path in HERE.glob("*/in.yaml"))
OUTPUTS = [f"{kind}.yaml" for kind in KINDS.values()]


def rendered(case: str) -> dict[str, list[dict[str, Any]]]:
    return documents(render(load((HERE / case / "in.yaml").read_text()), "127.0.0.1", 10000))


@pytest.mark.unit
@pytest.mark.parametrize("case", CASES)
def test_a_file_becomes(case: str, request: pytest.FixtureRequest) -> None:
    for kind, resources in rendered(case).items():
        output = HERE / case / f"{kind}.yaml"
        text = yaml.safe_dump_all(resources, sort_keys=False, allow_unicode=True, width=120)
        if request.config.getoption("--update-golden"):
            output.write_text(text)
        assert output.read_text() == text


@pytest.mark.unit
def test_no_output_is_left_without_its_case(request: pytest.FixtureRequest) -> None:
    files = [path for path in HERE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    expected = {HERE / case / name for case in CASES for name in ("in.yaml", *OUTPUTS)} | {Path(__file__)}
    orphans = sorted(set(files) - expected)
    if request.config.getoption("--update-golden"):
        for orphan in orphans:
            orphan.unlink()
        orphans = []
    assert orphans == []


@pytest.mark.e2e
@EVERY_ENVOY
@pytest.mark.parametrize("case", CASES)
def test_envoy_accepts(case: str, envoy_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "bootstrap.json"
    file.write_text(json.dumps(as_static_bootstrap(rendered(case))))
    assert complaints(file, binary=envoy_path) == ""


def as_static_bootstrap(documents: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Put everything into one bootstrap: as it is, and once more with what comes by EDS and RDS put in its place."""
    assignments = {each["clusterName"]: each for each in documents["endpoints"]}
    clusters, listeners = documents["clusters"], documents["listeners"]
    inlined_clusters = []
    for cluster in deepcopy(clusters):
        assignment = assignments[cluster["name"]]
        del cluster["edsClusterConfig"]
        inlined_clusters.append(
            {**cluster, "name": f"inlined_{cluster['name']}", "type": "STATIC", "loadAssignment": assignment}
        )
    (inlined_listener,) = deepcopy(listeners)
    inlined_listener["name"] = "inlined"
    inlined_listener["address"]["socketAddress"]["portValue"] += 1
    (chain,) = inlined_listener["filterChains"]
    manager = chain["filters"][0]["typedConfig"]
    del manager["rds"]
    (manager["routeConfig"],) = documents["routes"]
    return {
        "node": {"id": "golden", "cluster": "golden"},
        "dynamicResources": {
            "adsConfig": {
                "apiType": "DELTA_GRPC",
                "transportApiVersion": "V3",
                "grpcServices": [{"envoyGrpc": {"clusterName": "xds_cluster"}}],
            }
        },
        "staticResources": {
            "clusters": [
                {"name": "xds_cluster", "type": "STATIC", "loadAssignment": {"clusterName": "xds_cluster"}},
                *clusters,
                *inlined_clusters,
            ],
            "listeners": [*listeners, inlined_listener],
        },
        "overloadManager": {
            "resourceMonitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typedConfig": {
                        "@type": "type.googleapis.com/envoy.extensions.resource_monitors."
                        "downstream_connections.v3.DownstreamConnectionsConfig",
                        "maxActiveDownstreamConnections": 1000,
                    },
                }
            ]
        },
    }
