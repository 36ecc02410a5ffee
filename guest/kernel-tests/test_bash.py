"""Behaviour of the bash kernel, with the recipe's kernelspec."""

import time

import psutil


def test_output_and_state(bash):
    assert "".join(bash.run("echo hello; X=5").stdout) == "hello\n"
    assert "".join(bash.run("echo $X; pwd").stdout) == f"5\n{bash.home}\n"


def test_stderr_is_part_of_stdout(bash):
    outcome = bash.run("echo wrong >&2")
    assert ("".join(outcome.stdout), outcome.stderr) == ("wrong\n", [])


def test_a_failing_command_is_an_error_with_its_status(bash):
    error = bash.run("(exit 3)").error
    assert (error["ename"], error["evalue"], error["traceback"]) == ("", "3", [])


def test_the_random_state_can_be_set(bash):
    bash.run("RANDOM=7", silent=True)
    first = bash.run("echo $RANDOM").stdout
    bash.run("RANDOM=7", silent=True)
    assert bash.run("echo $RANDOM").stdout == first


def test_an_interrupt_keeps_the_shell(bash):
    bash.run("KEPT=1")
    request = bash.send("sleep 300")
    # Before the program runs, bash itself takes the signal, and waits.
    kernel, deadline = psutil.Process(bash.manager.provisioner.pid), time.monotonic() + 20
    while "sleep" not in [child.name() for child in kernel.children(recursive=True)]:
        assert time.monotonic() < deadline, "sleep was not started"
        time.sleep(0.01)
    bash.interrupt()
    bash.receive(request)
    assert "".join(bash.run("echo $KEPT").stdout) == "1\n"
