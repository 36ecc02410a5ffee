"""The SDK's git helpers. They run ordinary commands, so they test many features together."""

import pytest

# The helpers are deprecated, and every call emits a warning.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


# envd: C19
def test_git_workflow(sandbox, folder):
    git, files = sandbox.git, sandbox.files
    origin, first, second = f"{folder}/origin.git", f"{folder}/first", f"{folder}/second"
    git.configure_user("Ada", "ada@example.com")
    assert git.get_config("user.name") == "Ada"
    git.init(origin, bare=True, initial_branch="main")
    git.init(first, initial_branch="main")
    files.write(f"{first}/note.txt", "one\n")
    status = git.status(first)
    assert status.current_branch == "main"
    assert [(file.name, file.status, file.staged) for file in status.file_status] == [("note.txt", "untracked", False)]
    git.add(first)
    assert [file.staged for file in git.status(first).file_status] == [True]
    git.commit(first, "the first")
    git.remote_add(first, "origin", origin)
    assert git.remote_get(first, "origin") == origin
    git.push(first, remote="origin", branch="main")

    git.clone(origin, second)
    assert files.read(f"{second}/note.txt") == "one\n"
    git.create_branch(second, "idea")
    assert sorted(git.branches(second).branches) == ["idea", "main"]
    git.checkout_branch(second, "main")
    git.delete_branch(second, "idea")
    branches = git.branches(second)
    assert (branches.branches, branches.current_branch) == (["main"], "main")
    files.write(f"{second}/note.txt", "two\n")
    git.restore(second, ["note.txt"])
    assert files.read(f"{second}/note.txt") == "one\n"
    files.write(f"{second}/note.txt", "two\n")
    git.add(second, files=["note.txt"])
    git.reset(second)
    assert [file.staged for file in git.status(second).file_status] == [False]
    git.add(second)
    git.commit(second, "the second", author_name="Grace", author_email="grace@example.com")
    git.push(second)

    git.pull(first, remote="origin", branch="main")
    assert files.read(f"{first}/note.txt") == "two\n"
    log = sandbox.commands.run("git log --format='%an: %s'", cwd=first).stdout
    assert log == "Grace: the second\nAda: the first\n"
