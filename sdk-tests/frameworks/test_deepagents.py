"""LangChain's integration tests for sandbox backends, with the unmodified E2B backend of Deep Agents."""

from collections.abc import Iterator

import pytest
from e2b import Sandbox
from langchain_e2b import E2BSandbox
from langchain_tests.integration_tests import SandboxIntegrationTests


class TestBackend(SandboxIntegrationTests):
    @pytest.fixture(scope="class")
    def sandbox(self) -> Iterator[E2BSandbox]:
        sandbox = Sandbox.create(timeout=900)
        yield E2BSandbox(sandbox=sandbox)
        sandbox.kill()
