"""Kernels of the template `code-interpreter-v1`, started on the host from the recipe's files."""

import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpec

FILES = Path(__file__).parent.parent / "recipes/code-interpreter-v1/files"
NODE_PACKAGES = Path(__file__).parent.parent.parent / "target/kernels/node"
# Longer than anything takes on a busy machine: the first figure compiles matplotlib and lists all fonts.
EXECUTION_SECONDS_MAX = 120


@dataclass
class Outcome:
    """Messages of one execution, by kind."""

    reply: dict = field(default_factory=dict)
    stdout: list[str] = field(default_factory=list)
    stderr: list[str] = field(default_factory=list)
    results: list[dict] = field(default_factory=list)
    displays: list[dict] = field(default_factory=list)
    errors: list[dict] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def add(self, message):
        kind, content = message["msg_type"], message["content"]
        if kind == "stream":
            getattr(self, content["name"]).append(content["text"])
        elif kind == "execute_result":
            self.results.append(content["data"])
        elif kind == "display_data":
            self.displays.append(content["data"])
        elif kind == "error":
            self.errors.append(content)
        elif kind == "execute_input":
            self.counts.append(content["execution_count"])

    @property
    def result(self):
        """The only result; fails if there was an error."""
        assert not self.errors, "\n".join(self.errors[0]["traceback"])
        assert len(self.results) == 1, self
        return self.results[0]

    @property
    def text(self):
        return self.result["text/plain"]

    @property
    def error(self):
        assert len(self.errors) == 1, self
        return self.errors[0]


class Kernel:
    """A running kernel and its client."""

    def __init__(self, root, name):
        self.manager = KernelManager(kernel_name=name, transport="ipc")
        spec = json.loads((root / "usr/local/share/jupyter/kernels" / name / "kernel.json").read_text())
        spec["argv"] = [_in_root(argument, root) for argument in spec["argv"]]
        spec["env"] = {key: _in_root(value, root) for key, value in spec.get("env", {}).items()}
        spec["env"] |= {"PYTHONPATH": str(next((root / "usr/local/lib").glob("python3.*/dist-packages")))}
        self.manager._kernel_spec = KernelSpec(**spec)
        # Socket paths have at most 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="kernel-"))
        self.manager.connection_file = str(self.folder / "c.json")
        self.manager.ip = str(self.folder / "s")
        home = self.folder / "home"
        home.mkdir()
        environment = os.environ | {"HOME": str(home), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        self.manager.start_kernel(cwd=str(home), env=environment)
        self.home = home
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=EXECUTION_SECONDS_MAX)

    def send(self, code, **options):
        """Sends the code and returns the id of the request."""
        return self.client.execute(code, allow_stdin=False, **options)

    def receive(self, request, seconds=EXECUTION_SECONDS_MAX, until=None):
        """Returns the messages of a request up to its end, or up to the first for which `until` is true."""
        outcome, deadline = Outcome(), time.monotonic() + seconds
        while True:
            message = self.client.get_iopub_msg(timeout=max(deadline - time.monotonic(), 0))
            if message["parent_header"].get("msg_id") != request:
                continue
            outcome.add(message)
            if until is not None and until(outcome):
                return outcome
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                break
        while outcome.reply.get("parent_header", {}).get("msg_id") != request:
            outcome.reply = self.client.get_shell_msg(timeout=max(deadline - time.monotonic(), 0))
        outcome.reply = outcome.reply["content"]
        return outcome

    def run(self, code, **options):
        return self.receive(self.send(code, **options))

    def interrupt(self):
        """Interrupts the kernel as its kernelspec requires, and waits for the reply, if there is one."""
        if self.manager.kernel_spec.interrupt_mode != "message":
            return self.manager.interrupt_kernel()
        request = self.client.session.msg("interrupt_request", {})
        self.client.control_channel.send(request)
        reply = self.client.get_control_msg(timeout=EXECUTION_SECONDS_MAX)
        assert reply["parent_header"]["msg_id"] == request["header"]["msg_id"]

    def warm_up(self, name):
        """Runs a warm-up file as the server does."""
        return self.run((FILES / "etc/hearth/interpreter" / name).read_text(), silent=True, store_history=False)

    def stop(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        shutil.rmtree(self.folder)


def _in_root(value, root):
    for folder in ("/etc/hearth", "/usr/local/lib/hearth"):
        value = value.replace(folder, f"{root}{folder}")
    return value


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """The recipe's files, with the packages of the JavaScript kernel, as in the guest."""
    root = tmp_path_factory.mktemp("root")
    shutil.copytree(FILES, root, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    # The host lacks the template's second font, and matplotlib prints a warning for every text.
    (root / "etc/hearth/interpreter/matplotlibrc").write_text("font.family: sans-serif\n")
    assert NODE_PACKAGES.exists(), "run `cargo xtask kernel-tests`, which installs the packages of the kernels"
    (root / "usr/local/lib/hearth/node").symlink_to(NODE_PACKAGES)
    return root


@pytest.fixture
def start(root):
    """Starts kernels of their own for one test."""
    kernels = []

    def start(name):
        kernels.append(Kernel(root, name))
        return kernels[-1]

    yield start
    for kernel in kernels:
        kernel.stop()


def _shared(name):
    @pytest.fixture(scope="session", name=name)
    def shared(root):
        kernel = Kernel(root, "python3" if name == "python" else name)
        yield kernel
        kernel.stop()

    return shared


python = _shared("python")
javascript = _shared("javascript")
bash = _shared("bash")
