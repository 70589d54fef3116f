"""The files that build and run the project agree with each other."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())


IMAGE = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["nkeys"]]
"""What the image installs: it takes every kind of credentials that NATS has."""


def pinned() -> dict[str, str]:
    lines = [line for line in LOCK.splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def required_by(name: str) -> list[Requirement]:
    requirements = map(Requirement, importlib.metadata.requires(name) or [])
    return [one for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]


def test_the_lock_file_holds_versions_alone() -> None:
    lines = [line for line in LOCK.splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.+]*", line)] == []
    assert len(pinned()) == len(lines), "a name is pinned twice"
    assert "://" not in LOCK


@pytest.mark.parametrize("dependency", IMAGE)
def test_each_dependency_is_locked_at_a_version_it_allows(dependency: str) -> None:
    requirement = Requirement(dependency)
    assert requirement.specifier.contains(pinned()[canonicalize_name(requirement.name)])


def test_the_lock_file_holds_what_the_locked_versions_need_and_nothing_else() -> None:
    found: set[str] = set()
    unknown: set[str] = set()
    waiting = [canonicalize_name(Requirement(one).name) for one in IMAGE]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        if importlib.metadata.version(name) != pinned().get(name):
            unknown.add(name)  # another version is installed here: what the locked one needs cannot be known
            continue
        for requirement in required_by(name):
            assert requirement.specifier.contains(pinned()[canonicalize_name(requirement.name)]), requirement
            waiting.append(canonicalize_name(requirement.name))
    assert found <= pinned().keys() | unknown
    assert unknown or found == pinned().keys()


def test_the_image_installs_the_lock_file_then_the_package_alone_and_does_not_run_as_root() -> None:
    steps = [line for line in DOCKERFILE.splitlines() if re.match(r"(FROM|RUN pip|USER|CMD|HEALTHCHECK)", line)]
    assert [step.split()[0] for step in steps] == ["FROM", "RUN", "RUN", "USER", "CMD", "HEALTHCHECK"]
    assert "--requirement /source/requirements.lock" in steps[1]
    assert "--no-deps /source" in steps[2]
    assert steps[3].split()[1] not in ("root", "0")


def test_the_image_copies_only_what_the_build_may_see() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {source for line in DOCKERFILE.splitlines() if line.startswith("COPY") for source in line.split()[1:-1]}
    assert copied == allowed
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_the_service_waits_for_healthy_servers() -> None:
    services = COMPOSE["services"]
    assert set(services) == {"nats", "postgres", "environments-store"}
    for name in ("nats", "postgres"):
        assert services["environments-store"]["depends_on"][name] == {"condition": "service_healthy"}
        assert services[name]["healthcheck"]["test"][0] == "CMD"


def test_the_health_check_of_nats_asks_the_port_that_its_command_opens() -> None:
    nats = COMPOSE["services"]["nats"]
    assert nats["image"].endswith("-alpine"), "the plain image holds no shell and no wget"
    assert nats["command"] == ["--http_port", "8222"]
    assert "http://127.0.0.1:8222/healthz" in nats["healthcheck"]["test"]


def test_the_databases_files_outlive_their_container() -> None:
    (volume,) = COMPOSE["services"]["postgres"]["volumes"]
    name, place = volume.split(":")
    assert name in COMPOSE["volumes"]
    assert place == "/var/lib/postgresql", "where the image of version 18 keeps its data"


def test_the_password_comes_from_the_environment_and_is_in_no_url() -> None:
    services = COMPOSE["services"]
    password = services["postgres"]["environment"]["POSTGRES_PASSWORD"]
    assert password.startswith("${POSTGRES_PASSWORD:-")
    assert services["environments-store"]["environment"]["PGPASSWORD"] == password
    assert services["environments-store"]["environment"]["DATABASE_URL"].startswith("postgresql://environments@")


def test_ports_are_open_to_this_machine_alone() -> None:
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


@pytest.mark.parametrize("folder", ["interop", "sequelize"])
def test_no_lock_file_names_a_host_to_download_from(folder: str) -> None:
    text = (ROOT / "tests" / folder / "package-lock.json").read_text()
    assert '"resolved"' not in text


@pytest.mark.parametrize("script", PROJECT["scripts"].values())
def test_each_command_exists(script: str) -> None:
    point = importlib.metadata.EntryPoint("command", script, "console_scripts")
    assert callable(point.load())


def test_the_public_names_can_be_imported_without_the_nats_client() -> None:
    program = "import sys, broker; sys.exit('nats' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
