"""docker-compose.yml agrees with the code. It is read line by line: a YAML parser would be one more dependency."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from notify_worker.cli.main import app
from notify_worker.settings import Settings

CHECKOUT = Path(__file__).parents[2]
COMPOSE = (CHECKOUT / "docker-compose.yml").read_text()
OURS = ("migrate", "sandbox", "worker")


def service(name: str) -> str:
    """The lines of one service."""
    found = re.search(rf"^  {name}:\n((?: {{4}}.*\n)+)", COMPOSE, re.MULTILINE)
    assert found, f"docker-compose.yml has no service {name}"
    return found[1]


def asked(name: str) -> dict[str, Any]:
    """What the command line makes of a service's command."""
    found = re.search(r"^    command: (\[.*\])$", service(name), re.MULTILINE)
    assert found, f"the service {name} has no command"
    program, verb, *arguments = json.loads(found[1])
    assert program == "notify-worker"
    return app.commands[verb].make_context(verb, arguments).params


def environment(*names: str) -> dict[str, str]:
    """What these services have in their environment."""
    pairs = re.findall(r"^      ([A-Z_]+): (.+)$", "".join(map(service, names)), re.MULTILINE)
    return dict(pairs)


@pytest.mark.parametrize("name", OURS)
def test_a_command_in_the_compose_file_is_one_that_the_command_line_takes(name: str) -> None:
    assert "--help" not in asked(name)


def test_the_environment_in_the_compose_file_is_one_that_a_worker_takes() -> None:
    settings = Settings.from_env(environment("migrate", "worker"))

    given = environment("postgres")
    url = urlsplit(settings.database_url)
    assert (url.username, url.password) == (given["POSTGRES_USER"], given["POSTGRES_PASSWORD"])
    assert service(str(url.hostname))


def test_the_worker_in_the_compose_file_asks_where_the_sandbox_answers() -> None:
    sandbox = asked("sandbox")
    worker = environment("worker")

    assert worker["NOTIFY_WORKER_FCM_URL"] == f"http://{sandbox['host']}:{sandbox['port']}"
    assert worker["GOOGLE_APPLICATION_CREDENTIALS"] == str(sandbox["credentials"])
    assert "network_mode: service:sandbox" in service("worker")


def test_the_image_in_the_compose_file_has_all_that_the_wheel_is_built_of() -> None:
    pyproject = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    project, wheel = pyproject["project"], pyproject["tool"]["hatch"]["build"]["targets"]["wheel"]

    copied = {name for line in re.findall(r"COPY (.+) \S+\n", COMPOSE) for name in line.split()}

    assert copied == {
        "pyproject.toml", project["readme"], *project["license-files"], *wheel["packages"], *wheel["force-include"]
    }  # fmt: skip


def test_the_compose_file_publishes_to_this_machine_only() -> None:
    published = re.findall(r'^      - "?(.*\d:\d+)"?', COMPOSE, re.MULTILINE)

    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
