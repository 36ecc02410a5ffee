"""Watching folders by polling, with the synchronous SDK."""

import pytest
from e2b import FileNotFoundException, FilesystemEventType, FileType, InvalidArgumentException, SandboxException

from journeys import eventually, program

CREATE, WRITE, REMOVE, RENAME, CHMOD = (
    FilesystemEventType.CREATE,
    FilesystemEventType.WRITE,
    FilesystemEventType.REMOVE,
    FilesystemEventType.RENAME,
    FilesystemEventType.CHMOD,
)


@pytest.fixture
def files(sandbox):
    return sandbox.files


def seen(handle):
    return [(event.type, event.name) for event in handle.get_new_events()]


# envd: W6
def test_a_new_file_gives_three_events_immediately(files, folder):
    handle = files.watch_dir(folder)
    assert seen(handle) == []
    files.write(f"{folder}/new.txt", "x")
    events = seen(handle)
    assert events[0] == (CREATE, "new.txt")
    assert sorted(events, key=str) == sorted([(CREATE, "new.txt"), (CHMOD, "new.txt"), (WRITE, "new.txt")], key=str)
    assert seen(handle) == []
    handle.stop()


# envd: W1
def test_every_change_has_its_event(files, folder):
    files.write(f"{folder}/file", "x")
    handle = files.watch_dir(folder)
    files.write(f"{folder}/file", "overwritten")
    assert (WRITE, "file") in seen(handle)
    files.rename(f"{folder}/file", f"{folder}/moved")
    assert seen(handle) == [(RENAME, "file"), (CREATE, "moved")]
    files.remove(f"{folder}/moved")
    assert seen(handle) == [(REMOVE, "moved")]
    handle.stop()


# envd: W2, W6
def test_recursive_watches(sandbox, files, folder):
    files.make_dir(f"{folder}/old")
    flat = files.watch_dir(folder)
    deep = files.watch_dir(folder, recursive=True)
    files.write(f"{folder}/old/file", "x")
    assert seen(flat) == []
    events = seen(deep)
    assert events[0] == (CREATE, "old/file")
    assert sorted(events, key=str) == sorted([(kind, "old/file") for kind in (CREATE, CHMOD, WRITE)], key=str)

    # A folder that a command creates: the watch must include it.
    sandbox.commands.run(f"mkdir -p {folder}/new/deeper")
    events = []
    eventually(lambda: events.extend(seen(deep)) or (CREATE, "new/deeper") in events, within=10)
    sandbox.commands.run(f"echo x > {folder}/new/deeper/file")
    eventually(lambda: events.extend(seen(deep)) or (WRITE, "new/deeper/file") in events, within=10)
    assert (CREATE, "new") in events
    assert (CREATE, "new") in seen(flat)
    flat.stop()
    deep.stop()


# envd: W3, W4
def test_events_contain_entries_on_request(files, folder):
    plain = files.watch_dir(folder)
    full = files.watch_dir(folder, include_entry=True, allow_network_mounts=True)
    files.write(f"{folder}/file", "12345")
    assert all(event.entry is None for event in plain.get_new_events())
    written = [event for event in full.get_new_events() if event.type == WRITE][0]
    assert (written.entry.name, written.entry.path, written.entry.type) == ("file", f"{folder}/file", FileType.FILE)
    files.remove(f"{folder}/file")
    assert [(event.type, event.entry) for event in full.get_new_events()] == [(REMOVE, None)]
    plain.stop()
    full.stop()


# envd: W5, W7
def test_errors_of_watches(files, folder):
    with pytest.raises(FileNotFoundException):
        files.watch_dir(f"{folder}/missing")
    files.write(f"{folder}/file", "x")
    with pytest.raises(SandboxException):
        files.watch_dir(f"{folder}/file")
    handle = files.watch_dir(folder)
    handle.stop()
    with pytest.raises(SandboxException):
        handle.get_new_events()


# envd: W4
def test_a_network_mount_is_watched_only_on_request(sandbox, files):
    mount = "/mnt/remote"
    files.write("/root/fuse_mount.py", program("fuse_mount.py"), user="root")
    command = f"mkdir -p {mount} && exec python3 fuse_mount.py {mount}"
    server = sandbox.commands.run(command, user="root", background=True, timeout=0)
    assert next(iter(server))[0] == "mounted\n"
    with pytest.raises(InvalidArgumentException):
        files.watch_dir(mount)
    handle = files.watch_dir(mount, allow_network_mounts=True)
    assert seen(handle) == []
    handle.stop()
    sandbox.commands.run(f"umount -l {mount}", user="root")
    server.kill()
