"""Commands: output, exit codes, environment, working directory, user, input, background, signals, reconnecting."""

import shlex

import pytest
from e2b import (
    AuthenticationException,
    CommandExitException,
    InvalidArgumentException,
    NotFoundException,
    TimeoutException,
)

from journeys import eventually

UNKNOWN_PID = 999999


@pytest.fixture
def run(sandbox):
    return sandbox.commands.run


# envd: C1
@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "  spaces   kept  ",
        "quotes ' \" ` and $HOME \\ ! * ? [a] {b,c} ~ # & ; | < > ( )",
        "first\nsecond\n\nfourth",
        "ümläut 漢字 🦀",
        "-n",
    ],
)
def test_text_is_printed_unchanged(run, text):
    result = run('printf "%s\\n" "$TEXT"', envs={"TEXT": text})
    assert (result.stdout, result.stderr, result.exit_code) == (f"{text}\n", "", 0)


# envd: C1
@pytest.mark.parametrize(
    "text",
    ["plain text", "signs ' \" ` $HOME \\ ! * ? [a] {b,c} ~ # & ; | < > ( )", "first\nsecond\n\nfourth"],
    ids=["plain", "signs", "lines"],
)
def test_echo_prints_its_text(run, text):
    result = run(f"echo {shlex.quote(text)}")
    assert (result.stdout, result.stderr, result.exit_code) == (f"{text}\n", "", 0)


# envd: C3
def test_both_outputs_and_a_nonzero_exit(run):
    with pytest.raises(CommandExitException) as caught:
        run("echo to out; echo to err >&2; exit 3")
    assert (caught.value.stdout, caught.value.stderr, caught.value.exit_code) == ("to out\n", "to err\n", 3)


@pytest.mark.parametrize(
    ("command", "code", "stderr"),
    [
        ("no-such-command-here", 127, "not found"),
        ("/etc/passwd", 126, "Permission denied"),
        ("kill -9 $$", -1, ""),
        # Signals that the guest's first process blocks, and commands must not.
        ("kill -TERM $$", -1, ""),
        ("kill -INT $$", -1, ""),
        ("python3 -c 'import sys; sys.exit(42)'", 42, ""),
    ],
)
def test_exit_codes(run, command, code, stderr):
    with pytest.raises(CommandExitException) as caught:
        run(command)
    assert caught.value.exit_code == code
    assert stderr in caught.value.stderr


def test_output_arrives_while_the_command_runs(sandbox):
    handle = sandbox.commands.run("echo one; read line; echo two $line", background=True, stdin=True)
    output = iter(handle)
    assert next(output)[0] == "one\n"
    # The command waits for this input, so the earlier output was sent before its exit.
    handle.send_stdin("go\n")
    assert handle.wait().stdout == "one\ntwo go\n"


def test_callbacks_receive_all_output(run):
    out, err = [], []
    result = run("for i in 1 2 3; do echo out $i; echo err $i >&2; done", on_stdout=out.append, on_stderr=err.append)
    assert "".join(out) == result.stdout == "out 1\nout 2\nout 3\n"
    assert "".join(err) == result.stderr == "err 1\nerr 2\nerr 3\n"


def test_large_output_is_complete(run):
    output = run("seq 1 300000").stdout
    assert output == "".join(f"{number}\n" for number in range(1, 300001))


# envd: C4
def test_incomplete_characters_are_replaced(run):
    output = run("head -c 8191 /dev/zero | tr '\\0' a; printf '\\xe2'").stdout
    assert output == "a" * 8191 + "\ufffd"


# envd: C4
def test_characters_split_between_chunks_are_reassembled(run):
    assert run("for i in $(seq 20000); do printf 漢; done").stdout == "漢" * 20000


# envd: C2
def test_command_timeout(run, sandbox):
    assert run("sleep 0.2; echo done", timeout=30).stdout == "done\n"
    with pytest.raises(TimeoutException):
        run("sleep 31.7", timeout=1)
    handle = run("sleep 31.7", background=True, timeout=1)
    with pytest.raises(TimeoutException):
        handle.wait()
    # The timeout also kills the processes. `pgrep` fails if none matches.
    eventually(lambda: all("31.7" not in " ".join(process.args) for process in sandbox.commands.list()), within=5)
    with pytest.raises(CommandExitException):
        run("pgrep -x -f 'sleep 31.7'")


# envd: C10
def test_environment_of_one_command(run):
    envs = {"ONE": "1", "WITH_SPACE": "a b", "EMPTY": ""}
    assert run('echo "$ONE,$WITH_SPACE,${EMPTY-unset}"', envs=envs).stdout == "1,a b,\n"
    assert run("python3 -c 'import os; print(os.environ[\"WITH_SPACE\"])'", envs=envs).stdout == "a b\n"
    assert run('echo "${ONE-unset}"').stdout == "unset\n"


# envd: C14
def test_working_directory(run, folder):
    assert run("pwd").stdout == "/home/user\n"
    assert run("pwd", cwd="/tmp").stdout == "/tmp\n"
    name = folder.removeprefix("/home/user/")
    assert run("pwd", cwd=name).stdout == f"{folder}\n"
    assert run("pwd", cwd=f"~/{name}").stdout == f"{folder}\n"
    with pytest.raises(InvalidArgumentException, match="does not exist"):
        run("pwd", cwd=f"{folder}/missing")
    # A directory that existed for an earlier command.
    run("mkdir here")
    assert run("pwd; rmdir ~/here", cwd="~/here").stdout == "/home/user/here\n"
    with pytest.raises(InvalidArgumentException, match="does not exist"):
        run("pwd", cwd="~/here")
    run("mkdir -m 700 /root/closed 2>/dev/null || true", user="root")
    with pytest.raises(InvalidArgumentException):
        run("pwd", cwd="/root/closed")
    assert run("pwd", cwd="/root/closed", user="root").stdout == "/root/closed\n"


def test_user_of_commands(run):
    who = 'echo "$(whoami) $(id -u) $HOME $USER $(umask)"'
    assert run(who).stdout == "user 1000 /home/user user 0022\n"
    assert run(who, user="root").stdout == "root 0 /root root 0022\n"
    assert run("sudo -n id -u").stdout == "0\n"
    with pytest.raises(AuthenticationException, match="invalid username: 'nobody-here'"):
        run("whoami", user="nobody-here")


# envd: C11, C12
@pytest.mark.parametrize(
    "text",
    ["line\n", "no end of line", "", "ünï $x `y` \\z\n\nlast\n", "x" * 200_000],
    ids=["line", "open", "empty", "special", "long"],
)
def test_input_is_echoed_unchanged(sandbox, text):
    handle = sandbox.commands.run("cat", background=True, stdin=True)
    handle.send_stdin(text)
    handle.close_stdin()
    result = handle.wait()
    assert (result.stdout, result.stderr, result.exit_code) == (text, "", 0)


# envd: C11, C12
def test_input_as_bytes_in_several_parts(sandbox):
    handle = sandbox.commands.run("od -An -tx1", background=True, stdin=True)
    handle.send_stdin(b"\x00\xff")
    handle.send_stdin(b"")
    sandbox.commands.send_stdin(handle.pid, b"\x80")
    sandbox.commands.close_stdin(handle.pid)
    assert handle.wait().stdout.split() == ["00", "ff", "80"]


# envd: C18
def test_input_as_a_stream(sandbox):
    handle = sandbox.commands.run("cat", background=True, stdin=True)
    sandbox.commands.stream_input(handle.pid, (f"{number}\n" for number in range(200)))
    handle.close_stdin()
    assert handle.wait().stdout == "".join(f"{number}\n" for number in range(200))
    with pytest.raises(NotFoundException):
        sandbox.commands.stream_input(UNKNOWN_PID, ["x"])


# envd: C13
def test_without_input_read_gets_end_of_file(run):
    with pytest.raises(CommandExitException) as caught:
        run("read line", user="root")
    assert caught.value.exit_code == 1


# envd: C5, C7, C8, C9
def test_background_commands_are_listed_and_killed(sandbox):
    handles = [sandbox.commands.run(f"sleep 30{number}", background=True, timeout=0) for number in range(2)]
    listed = {process.pid: process for process in sandbox.commands.list()}
    for number, handle in enumerate(handles):
        process = listed[handle.pid]
        assert process.cmd == "/bin/bash" and process.args == ["-l", "-c", f"sleep 30{number}"]
        assert handle.kill() is True
        # The process has exited when `kill` returns.
        with pytest.raises(CommandExitException):
            sandbox.commands.run(f"kill -0 {handle.pid}", user="root")
        with pytest.raises(CommandExitException) as caught:
            handle.wait()
        assert (caught.value.exit_code, caught.value.error) == (-1, "signal: killed")
    assert not {handle.pid for handle in handles} & {process.pid for process in sandbox.commands.list()}
    assert sandbox.commands.kill(handles[0].pid) is False
    assert sandbox.commands.kill(UNKNOWN_PID) is False


# envd: C15
def test_killing_a_shell_with_children_ends_the_stream(sandbox):
    others = {process.pid for process in sandbox.commands.list()}
    handle = sandbox.commands.run("sleep 300 && echo done", background=True, timeout=0)
    assert sandbox.commands.kill(handle.pid)
    with pytest.raises(CommandExitException) as caught:
        handle.wait()
    assert (caught.value.exit_code, caught.value.stdout) == (-1, "")
    assert {process.pid for process in sandbox.commands.list()} == others


# envd: C15
def test_killing_a_development_server_ends_the_stream(sandbox, folder):
    others = {process.pid for process in sandbox.commands.list()}
    server = "require('http').createServer((_, response) => response.end('up')).listen(4173, () => console.log('ready'))"
    sandbox.files.write(f"{folder}/server.js", server)
    handle = sandbox.commands.run("node server.js", cwd=folder, background=True, timeout=0)
    assert next(iter(handle))[0] == "ready\n"
    assert sandbox.commands.run("curl -s http://127.0.0.1:4173").stdout == "up"
    assert handle.kill()
    with pytest.raises(CommandExitException) as caught:
        handle.wait()
    assert (caught.value.exit_code, caught.value.error) == (-1, "signal: killed")
    assert {process.pid for process in sandbox.commands.list()} == others


# envd: C15
def test_a_shell_that_left_a_program_is_not_listed(sandbox):
    others = {process.pid for process in sandbox.commands.list()}
    handle = sandbox.commands.run("sleep 307 & echo left", background=True, timeout=0)
    assert next(iter(handle))[0] == "left\n"
    eventually(lambda: {process.pid for process in sandbox.commands.list()} == others, 20)
    # Its own stream continues, a kill reaches the remaining program, and other clients receive the end event.
    sandbox.commands.run("pgrep -f 'sleep 307'")
    assert handle.kill() is True
    assert handle.wait().exit_code == 0
    assert sandbox.commands.connect(handle.pid).wait().exit_code == 0
    # With redirected output, `run` returns immediately.
    sandbox.commands.run("sleep 308 >/dev/null 2>&1 &", timeout=20)
    sandbox.commands.run("pkill -f 'sleep 308'")


# envd: C5, C6, C17
def test_disconnecting_and_reconnecting(sandbox):
    handle = sandbox.commands.run("read line; echo got $line", background=True, stdin=True, timeout=0)
    handle.disconnect()
    assert handle.pid in [process.pid for process in sandbox.commands.list()]
    again = sandbox.commands.connect(handle.pid)
    assert again.pid == handle.pid
    sandbox.commands.send_stdin(handle.pid, "it\n")
    assert again.wait().stdout == "got it\n"
    # The end event is stored for late subscribers; the output is not.
    late = sandbox.commands.connect(handle.pid).wait()
    assert (late.exit_code, late.stdout) == (0, "")
    with pytest.raises(NotFoundException, match=str(UNKNOWN_PID)):
        sandbox.commands.connect(UNKNOWN_PID)


def test_two_clients_receive_the_same_output(sandbox):
    first = sandbox.commands.run("read line; seq 1 1000; exit 7", background=True, stdin=True, timeout=0)
    second = sandbox.commands.connect(first.pid)
    sandbox.commands.send_stdin(first.pid, "go\n")
    outputs = []
    for handle in (first, second):
        with pytest.raises(CommandExitException) as caught:
            handle.wait()
        assert caught.value.exit_code == 7
        outputs.append(caught.value.stdout)
    assert outputs[0] == outputs[1] == "".join(f"{number}\n" for number in range(1, 1001))


def test_a_detached_child_survives_its_command(sandbox, folder):
    child = f"read line < {folder}/gate; echo woke > {folder}/out.new; mv {folder}/out.new {folder}/out"
    sandbox.commands.run(f"mkfifo {folder}/gate; nohup sh -c '{child}' >/dev/null 2>&1 &")
    # Opening a pipe blocks until it has a reader, so the child must be alive.
    sandbox.commands.run(f"timeout 20 sh -c 'echo x > {folder}/gate; until test -e {folder}/out; do sleep 0.1; done'")
    assert sandbox.files.read(f"{folder}/out") == "woke\n"
