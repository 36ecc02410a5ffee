"""LangChain's checks of a sandbox backend, run on Deep Agents' E2B backend as it is."""

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
