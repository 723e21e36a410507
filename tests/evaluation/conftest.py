"""The fixtures of the tests of methods, for tests that run a method."""

from tests.methods.conftest import ask, template

__all__ = ["ask", "template"]
