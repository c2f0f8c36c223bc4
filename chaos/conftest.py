"""The chaos run has servers of its own, and so no fixture of the tests'."""

from tests.support.server import forget_the_shell


def pytest_configure() -> None:
    forget_the_shell()
