"""Terminals (PTY)."""

import pytest
from e2b import CommandExitException, PtySize

UNKNOWN_PID = 999999


class Terminal:
    """Terminal whose output can be read until a text appears."""

    def __init__(self, handle):
        self.handle = handle
        self.output = ""
        self._events = iter(handle)

    def read_until(self, text):
        while text not in self.output:
            for _, _, data in self._events:
                self.output += (data or b"").decode(errors="replace")
                break
            else:
                raise AssertionError(f"the terminal exited without {text!r}: {self.output!r}")

    def forget(self):
        self.output = ""


@pytest.fixture
def pty(sandbox):
    return sandbox.pty


def open_terminal(pty, **options):
    return Terminal(pty.create(PtySize(rows=24, cols=80), timeout=60, **options))


# envd: P1, P5
def test_a_terminal_accepts_input_and_exits(pty):
    terminal = open_terminal(pty, cwd="/", envs={"ABC": "123"})
    pid = terminal.handle.pid
    pty.send_stdin(pid, b'echo "[$ABC $(pwd) $TERM $(tty | cut -c1-8) $(whoami)]"\n')
    terminal.read_until("[123 / xterm-256color /dev/pts user]")
    pty.send_stdin(pid, b"exit\n")
    assert terminal.handle.wait().exit_code == 0


# envd: P3
def test_the_size_of_a_terminal_can_be_changed(pty):
    terminal = open_terminal(pty)
    pid = terminal.handle.pid
    pty.send_stdin(pid, b'echo "size=$(stty size), $(tput cols)."\n')
    terminal.read_until("size=24 80, 80.")
    pty.resize(pid, PtySize(rows=40, cols=100))
    pty.send_stdin(pid, b'echo "size=$(stty size), $(tput cols)."\n')
    terminal.read_until("size=40 100, 100.")
    pty.send_stdin(pid, b"exit 5\n")
    with pytest.raises(CommandExitException) as caught:
        terminal.handle.wait()
    assert caught.value.exit_code == 5


# envd: P2
def test_disconnecting_and_reconnecting(pty):
    first = open_terminal(pty)
    pid = first.handle.pid
    pty.send_stdin(pid, b"echo first-$((40+2))\n")
    first.read_until("first-42")
    first.handle.disconnect()
    second = Terminal(pty.connect(pid, timeout=60))
    assert second.handle.pid == pid
    pty.send_stdin(pid, b"echo second-$((40+3))\n")
    second.read_until("second-43")
    assert "first-42" not in second.output
    pty.send_stdin(pid, b"exit\n")
    assert second.handle.wait().exit_code == 0


def test_control_characters_reach_the_foreground_program(pty):
    terminal = open_terminal(pty)
    pid = terminal.handle.pid
    # Wait for its output: before, the shell may still be in the foreground.
    pty.send_stdin(pid, b"sh -c 'echo ready-$((1+1)); exec sleep 300'\n")
    terminal.read_until("ready-2")
    # Control-C terminates the program, not the shell.
    pty.send_stdin(pid, b"\x03")
    pty.send_stdin(pid, b"echo after-$((2+1))\n")
    terminal.read_until("after-3")
    assert pty.kill(pid) is True
    with pytest.raises(CommandExitException):
        terminal.handle.wait()


# envd: P4
def test_a_terminal_is_killed(sandbox, pty):
    terminal = open_terminal(pty, user="root")
    assert pty.kill(terminal.handle.pid) is True
    with pytest.raises(CommandExitException):
        sandbox.commands.run(f"kill -0 {terminal.handle.pid}", user="root")
    assert pty.kill(terminal.handle.pid) is False
    assert pty.kill(UNKNOWN_PID) is False
