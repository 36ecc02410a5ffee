"""Content of the `base` template."""

import io
import re
import zipfile

import pytest


@pytest.fixture
def run(sandbox):
    return lambda command, **options: sandbox.commands.run(command, timeout=100, **options).stdout


@pytest.mark.parametrize(
    ("command", "pattern"),
    [
        ("python3 --version", r"Python 3\.\d+"),
        ("python --version", r"Python 3\.\d+"),
        ("pip --version", r"pip \d+"),
        ("node --version", r"v(2[0-9])\."),
        ("npm --version", r"\d+\."),
        ("git --version", r"git version 2"),
        ("curl --version", r"curl \d"),
        ("gcc --version", r"gcc"),
        ("make --version", r"GNU Make"),
        ("bash --version", r"GNU bash"),
        ("sudo -n true && echo free", r"free"),
        ("ip address show eth0", r"169\.254\.0\.21"),
        ("test -s /etc/ssl/certs/ca-certificates.crt && echo there", r"there"),
        ("cat /proc/sys/fs/inotify/max_user_watches", r"\d{5,}"),
        ("echo $SHELL", r"/bin/bash"),
        ("hostname", r"\w+"),
    ],
)
def test_tools(run, command, pattern):
    assert re.search(pattern, run(command)), run(command)


def test_folders_that_users_can_write_to(run):
    assert run("for f in /code /usr/local /tmp /dev/shm; do touch $f/mine && rm $f/mine && echo $f; done").split() == [
        "/code",
        "/usr/local",
        "/tmp",
        "/dev/shm",
    ]


def test_a_program_is_compiled_and_runs(sandbox, run, folder):
    sandbox.files.write(f"{folder}/hello.c", '#include <stdio.h>\nint main(void) { puts("compiled"); return 0; }\n')
    sandbox.files.write(f"{folder}/Makefile", "hello: hello.c\n\tgcc -O0 -o $@ $<\n")
    assert run("make -s hello && ./hello", cwd=folder) == "compiled\n"


def wheel(name: str) -> bytes:
    """Builds a wheel with one module."""
    folder = f"{name}-1.0.dist-info"
    contents = {
        f"{name}.py": "ANSWER = 42\n",
        f"{folder}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{folder}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    contents[f"{folder}/RECORD"] = "".join(f"{path},,\n" for path in [*contents, f"{folder}/RECORD"])
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path, text in contents.items():
            archive.writestr(path, text)
    return packed.getvalue()


@pytest.mark.parametrize("user", ["user", "root"])
def test_python_packages_are_installed_without_a_virtual_environment(sandbox, run, folder, user):
    """Installs from a file, because the guest cannot reach a registry."""
    name = f"greeting_{user}"
    path = f"{folder}/{name}-1.0-py3-none-any.whl"
    sandbox.files.write(path, wheel(name))
    run(f"pip install --no-index {path}", user=user)
    assert run(f"python3 -c 'import {name}; print({name}.ANSWER)'", user=user) == "42\n"


# envd: C19
def test_git_works(run, folder):
    commands = [
        "git init -q -b main repository && cd repository",
        "git config user.name Ada && git config user.email ada@example.com",
        "echo text > file && git add file && git commit -q -m first",
        "git clone -q . ../copy && cat ../copy/file && git log --format=%s",
    ]
    assert run(" && ".join(commands), cwd=folder) == "text\nfirst\n"


def test_node_runs_programs(sandbox, run, folder):
    sandbox.files.write(f"{folder}/sum.mjs", "console.log([1, 2, 3].reduce((a, b) => a + b))\n")
    assert run("node sum.mjs", cwd=folder) == "6\n"


def test_a_sandbox_is_a_virtual_machine(run):
    """It has its own kernel, its own init process, and only its own processes."""
    assert run("cat /proc/1/comm").strip() not in ("bash", "sh", "")
    assert run("uname -s") == "Linux\n"
    assert run("ps -e --no-headers | wc -l", user="root") and int(run("ls -d /proc/[0-9]* | wc -l")) < 200
    assert run("findmnt -n -o FSTYPE /").strip() == "ext4"
    free = int(run("df --output=avail -B1M / | tail -1"))
    assert free > 1024, f"{free} MiB free"
