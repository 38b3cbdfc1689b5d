"""The files in deploy/: valid by their schemas, and in agreement with the server's options and routes."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from compose_spec import PyCompose

from shoal.launch_server import parse
from shoal.runtime.config import EngineConfig
from shoal.runtime.flags import given
from shoal.runtime.http.config import ServerConfig
from shoal.runtime.http.keys import OPEN_PATHS
from shoal.serve_ray.config import Arguments

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
KUBERNETES = [one for one in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()) if one]
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
KUBERAY: dict[str, Any] = yaml.safe_load((DEPLOY / "kuberay.yaml").read_text())
KUBERAY_SCHEMA = json.loads((ROOT / "tests" / "kuberay_schema.json").read_text())
SERVE: dict[str, Any] = yaml.safe_load((DEPLOY / "serve.yaml").read_text())
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()


def check_command(arguments: list[str]) -> None:
    """The server takes these arguments."""
    namespace = parse([str(argument) for argument in arguments])
    EngineConfig(**given(namespace, EngineConfig))
    ServerConfig(**given(namespace, ServerConfig))


@pytest.mark.parametrize("resource", KUBERNETES, ids=lambda one: one["kind"])
def test_kubernetes_resources_are_valid(resource):
    kubernetes_validate.validate(resource, "1.37", strict=True)
    broken = resource | {"spec": resource["spec"] | {"noSuchField": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.37", strict=True)


def test_the_deployment_agrees_with_the_server_and_the_image():
    pod = KUBERNETES[0]["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    check_command(server["args"])
    uid = re.search(r"useradd .*--uid (\d+)", DOCKERFILE)
    assert uid is not None
    assert pod["securityContext"]["runAsUser"] == int(uid[1]) > 0
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert server[probe]["httpGet"]["path"] in OPEN_PATHS  # probes have no key
    drain = server["args"][server["args"].index("--drain-timeout") + 1]
    assert pod["terminationGracePeriodSeconds"] > int(drain)


def test_the_compose_file_is_valid():
    plain = {name: value for name, value in COMPOSE.items() if not name.startswith("x-")}  # merged where it is used
    PyCompose.from_json(json.dumps(plain)).validate()
    broken = plain | {"services": {"first": plain["services"]["first"] | {"no_such_key": 1}}}
    with pytest.raises(ValueError, match="no_such_key"):
        PyCompose.from_json(json.dumps(broken)).validate()
    for name in ("first", "second"):
        check_command(COMPOSE["services"][name]["command"])
    router = COMPOSE["services"]["router"]
    assert router["command"][-2:] == ["http://first:30000", "http://second:30000"]


def check_serve(config: dict[str, Any]) -> Arguments:
    """Ray Serve takes this configuration, and shoal its arguments."""
    (application,) = config["applications"]
    assert application["import_path"] == "shoal.serve_ray:app"
    if importlib.util.find_spec("ray") is not None:
        from ray.serve.schema import ServeDeploySchema

        ServeDeploySchema.model_validate(config)
    return Arguments.of(application["args"])


def test_configurations_of_ray_serve_are_valid():
    assert check_serve(SERVE).ray.num_replicas == 2
    arguments = check_serve(yaml.safe_load(KUBERAY["spec"]["serveConfigV2"]))
    assert (arguments.num_gpus, arguments.ray.max_replicas) == (1, 4)


def test_the_ray_service_is_valid():
    jsonschema.validate(KUBERAY, KUBERAY_SCHEMA)
    for path in (("spec",), ("spec", "rayClusterConfig"), ("spec", "rayClusterConfig", "headGroupSpec")):
        broken = part = copy.deepcopy(KUBERAY)
        for name in path:
            part = part[name]
        part["noSuchField"] = 1
        with pytest.raises(jsonschema.ValidationError, match="noSuchField"):
            jsonschema.validate(broken, KUBERAY_SCHEMA)
    cluster = KUBERAY["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        kind = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "shoal"}}
        kubernetes_validate.validate(kind | {"template": group["template"]}, "1.37", strict=True)
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(kind | {"template": {"spec": {"containers": 1}}}, "1.37", strict=True)


def test_the_ray_service_agrees_with_shoal_and_the_image():
    cluster = KUBERAY["spec"]["rayClusterConfig"]
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert cluster["rayVersion"] == pinned[1]
    config = yaml.safe_load(KUBERAY["spec"]["serveConfigV2"])
    arguments = check_serve(config)
    (workers,) = cluster["workerGroupSpecs"]
    assert (workers["minReplicas"], workers["maxReplicas"]) == (arguments.ray.num_replicas, arguments.ray.max_replicas)
    uid = re.search(r"useradd .*--uid (\d+)", DOCKERFILE)
    assert uid is not None
    for group in (cluster["headGroupSpec"], workers):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["image"] == "shoal:ray"
        assert pod["securityContext"]["runAsUser"] == int(uid[1])
        assert pod["terminationGracePeriodSeconds"] > arguments.server.drain_timeout_s
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports["serve"] == config["http_options"]["port"]
        assert {one["name"] for one in container["env"]} == {"SHOAL_API_KEY", "SHOAL_ADMIN_API_KEY"}
    (gpu,) = workers["template"]["spec"]["containers"]
    assert gpu["resources"]["limits"]["nvidia.com/gpu"] == str(arguments.num_gpus)
    assert int(gpu["resources"]["requests"]["cpu"]) >= arguments.ray.replica_cpus


def test_the_dockerfile_has_its_targets_and_does_not_run_as_root():
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)
    names = [name for _, name in stages]
    assert {"cpu", "cuda", "ray"} <= set(names)
    assert all(parent in names[:number] or ":" in parent for number, (parent, _) in enumerate(stages))
    assert re.search(r"^USER shoal$", DOCKERFILE, re.MULTILINE)
    assert re.search(r"^HEALTHCHECK ", DOCKERFILE, re.MULTILINE)
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        assert all((ROOT / name).exists() for name in source.split())
    (command,) = re.findall(r"^CMD \[(.+)\]$", DOCKERFILE, re.MULTILINE)
    check_command([argument.strip(' "') for argument in command.split(",")])
