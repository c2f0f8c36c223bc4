"""The chaos run starts its own servers and uses no fixture of the tests."""

from tests.support.server import forget_the_shell


def pytest_configure() -> None:
    forget_the_shell()
