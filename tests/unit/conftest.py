"""The sandbox, and a client of it."""

from collections.abc import Iterator
from pathlib import Path
from shutil import copy

import httpx
import pytest

from notify_worker import sandbox
from notify_worker.sandbox import Sandbox
from tests.support.fcm_client import client_of


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A service-account file that the sandboxes here take over, so that only one RSA key is made."""
    path = tmp_path_factory.mktemp("key") / "sandbox.json"
    sandbox.start(path).stop()
    return path


@pytest.fixture
def key(made_once: Path, tmp_path: Path) -> Path:
    return Path(copy(made_once, tmp_path / "sandbox.json"))


@pytest.fixture
def box(key: Path) -> Iterator[Sandbox]:
    with sandbox.start(key) as box:
        yield box


@pytest.fixture(scope="module")
def open_box(made_once: Path) -> Iterator[Sandbox]:
    """One sandbox for all tests that look at an answer alone."""
    with sandbox.start(made_once) as box:
        yield box


@pytest.fixture(scope="module")
def open_client(open_box: Sandbox) -> Iterator[httpx.Client]:
    with client_of(open_box) as client:
        yield client


@pytest.fixture
def client(box: Sandbox) -> Iterator[httpx.Client]:
    with client_of(box) as client:
        yield client
