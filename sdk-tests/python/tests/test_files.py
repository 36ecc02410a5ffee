"""Files: write, read, list, info, rename, remove, metadata, large and binary files, signed URLs."""

import gzip
import hashlib
import io
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone

import httpx
import pytest
from e2b import (
    FileNotFoundException,
    FileType,
    InvalidArgumentException,
    SandboxException,
)
from e2b.sandbox.filesystem.filesystem import WriteEntry

from journeys import ENVD_PORT, by_headers, by_host, program

MIB = 1024 * 1024


@pytest.fixture
def files(sandbox):
    return sandbox.files


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


# envd: F1, F2, F12
def test_text_is_written_and_read(files, folder):
    path = f"{folder}/new/nested/note.txt"
    info = files.write(path, "first\n")
    assert (info.name, info.path, info.type) == ("note.txt", path, FileType.FILE)
    assert files.read(path) == "first\n"
    files.write(path, "ü")
    assert files.read(path) == "ü"
    assert files.exists(path) and not files.exists(f"{path}.missing")


# envd: F4
def test_binary_is_written_and_read(files, folder):
    content = bytes(range(256)) * 17 + b"\r\n--boundary\r\n\x00"
    files.write(f"{folder}/binary", content)
    assert files.read(f"{folder}/binary", format="bytes") == bytearray(content)
    files.write(f"{folder}/from-file", io.BytesIO(content))
    assert files.read(f"{folder}/from-file", format="bytes") == bytearray(content)


# envd: F4, F5
@pytest.mark.parametrize("options", [{}, {"gzip": True}, {"use_octet_stream": True}], ids=["multipart", "gzip", "raw"])
def test_upload_formats(files, folder, options):
    content = noise(230_000)
    files.write(f"{folder}/upload", content, **options)
    assert files.read(f"{folder}/upload", format="bytes", gzip=options.get("gzip", False)) == bytearray(content)
    files.write(f"{folder}/streamed", io.BytesIO(content), **options)
    assert b"".join(files.read(f"{folder}/streamed", format="stream")) == content
    files.write(f"{folder}/empty", b"", **options)
    assert files.read(f"{folder}/empty") == "" and files.read(f"{folder}/empty", format="bytes") == b""
    assert list(files.read(f"{folder}/empty", format="stream")) in ([], [b""])


def test_streaming_100_mib_in_both_directions(sandbox, folder):
    block = noise(MIB)
    expected = hashlib.sha256()

    def blocks() -> Iterator[bytes]:
        for number in range(100):
            # No two blocks are equal, so a lost, duplicated or swapped block changes the hash.
            part = number.to_bytes(8, "big") + block[8:]
            expected.update(part)
            yield part

    sandbox.files.write(f"{folder}/big", blocks(), request_timeout=110)
    assert sandbox.files.get_info(f"{folder}/big").size == 100 * MIB
    received = hashlib.sha256()
    for part in sandbox.files.read(f"{folder}/big", format="stream", request_timeout=110):
        received.update(part)
    assert received.hexdigest() == expected.hexdigest()
    sandbox.files.remove(f"{folder}/big")


# envd: F3
def test_many_files_in_one_request(files, folder):
    entries = [WriteEntry(path=f"{folder}/many/{number}.txt", data=f"content {number}") for number in range(10)]
    name = folder.removeprefix("/home/user/")
    entries.append(WriteEntry(path=f"{name}/relative.txt", data=b"\x00"))
    infos = files.write_files(entries)
    assert [info.path for info in infos] == [*(entry["path"] for entry in entries[:-1]), f"{folder}/relative.txt"]
    assert [files.read(entry["path"]) for entry in entries[:3]] == ["content 0", "content 1", "content 2"]
    assert files.write_files([]) == []


# envd: F2
def test_concurrent_writes_to_one_new_tree(files, folder):
    def write(number: int) -> None:
        files.write(f"{folder}/a/b/c/{number}", str(number))

    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(write, range(16)))
    assert sorted(int(entry.name) for entry in files.list(f"{folder}/a/b/c")) == list(range(16))


# envd: F6, F14
def test_missing_files(files, folder):
    for format in ("text", "bytes", "stream"):
        with pytest.raises(FileNotFoundException):
            files.read(f"{folder}/missing", format=format)
    for fail in (files.get_info, files.list):
        with pytest.raises(FileNotFoundException):
            fail(f"{folder}/missing")
    with pytest.raises(FileNotFoundException):
        files.rename(f"{folder}/missing", f"{folder}/new")
    with pytest.raises(InvalidArgumentException):
        files.read(folder)
    files.write(f"{folder}/file", "x")
    with pytest.raises(SandboxException):
        files.list(f"{folder}/file")
    with pytest.raises(InvalidArgumentException):
        files.write(folder, "a folder is not a file")


# envd: F7, F10
def test_folders_are_listed_in_order(files, folder):
    for path in ("file1.txt", "subdir2/deep/x", "subdir1/subdir1_2/y", "subdir1/subdir1_1/file"):
        files.write(f"{folder}/{path}", path)

    def listed(depth):
        return [entry.path.removeprefix(f"{folder}/") for entry in files.list(folder, depth=depth)]

    assert listed(None) == ["file1.txt", "subdir1", "subdir2"] == listed(1)
    assert listed(2) == ["file1.txt", "subdir1", "subdir1/subdir1_1", "subdir1/subdir1_2", "subdir2", "subdir2/deep"]
    assert listed(3) == [
        "file1.txt",
        "subdir1",
        "subdir1/subdir1_1",
        "subdir1/subdir1_1/file",
        "subdir1/subdir1_2",
        "subdir1/subdir1_2/y",
        "subdir2",
        "subdir2/deep",
        "subdir2/deep/x",
    ]
    for depth in (0, -1):
        with pytest.raises(InvalidArgumentException):
            files.list(folder, depth=depth)
    assert files.list(f"{folder}/subdir1/subdir1_1")[0].type == FileType.FILE
    name = folder.removeprefix("/home/user/")
    assert [entry.path for entry in files.list(name)][:1] == [f"{folder}/file1.txt"]
    files.make_dir(f"{folder}/void")
    assert files.list(f"{folder}/void") == []


# envd: F8, F9, F11
def test_information_about_entries(sandbox, files, folder):
    files.write(f"{folder}/file", "12345")
    files.make_dir(f"{folder}/dir")
    entry = files.get_info(f"{folder}/dir")
    assert (entry.mode, entry.permissions, entry.owner, entry.group) == (0o755, "drwxr-xr-x", "user", "user")
    sandbox.commands.run(f"cd {folder} && ln -s file link && chmod 750 dir && ln -s nowhere broken")
    entry = files.get_info(f"{folder}/file")
    assert (entry.name, entry.path, entry.type, entry.size) == ("file", f"{folder}/file", FileType.FILE, 5)
    assert (entry.mode, entry.permissions, entry.owner, entry.group) == (0o644, "-rw-r--r--", "user", "user")
    assert abs(entry.modified_time - datetime.now(timezone.utc)) < timedelta(minutes=1)
    assert entry.symlink_target is None
    entry = files.get_info(f"{folder}/dir")
    assert (entry.type, entry.mode, entry.permissions) == (FileType.DIR, 0o750, "drwxr-x---")
    entry = files.get_info(f"{folder}/link")
    assert (entry.name, entry.path, entry.symlink_target) == ("link", f"{folder}/link", f"{folder}/file")
    # A broken link has no type, and the SDK omits such entries.
    assert [entry.name for entry in files.list(folder)] == ["dir", "file", "link"]
    assert files.exists(f"{folder}/broken")
    for name in (".bashrc", ".profile"):
        entry = files.get_info(name)
        assert (entry.path, entry.owner, entry.group) == (f"/home/user/{name}", "user", "user")


# envd: F12, F13, F14, F15
def test_folders_are_created_moved_and_removed(files, folder):
    assert files.make_dir(f"{folder}/a/b/c") is True
    assert files.make_dir(f"{folder}/a/b/c") is False
    assert files.get_info(f"{folder}/a").owner == "user"
    files.write(f"{folder}/a/b/c/file", "moved")
    entry = files.rename(f"{folder}/a/b", f"{folder}/x/y")
    assert (entry.name, entry.path, entry.type) == ("y", f"{folder}/x/y", FileType.DIR)
    assert files.read(f"{folder}/x/y/c/file") == "moved" and not files.exists(f"{folder}/a/b")
    files.write(f"{folder}/other", "replaced")
    files.rename(f"{folder}/x/y/c/file", f"{folder}/other")
    assert files.read(f"{folder}/other") == "moved"
    files.remove(f"{folder}/x")
    assert not files.exists(f"{folder}/x")
    files.remove(f"{folder}/other")
    files.remove(f"{folder}/never-there")
    files.write(f"{folder}/file", "")
    with pytest.raises(SandboxException):
        files.make_dir(f"{folder}/file/below")


def test_files_of_other_users(sandbox, files, folder):
    files.write("only-roots.txt", "secret", user="root")
    assert (
        sandbox.commands.run("stat -c '%U %n' /root/only-roots.txt", user="root").stdout
        == "root /root/only-roots.txt\n"
    )
    assert files.read("only-roots.txt", user="root") == "secret"
    assert files.exists("only-roots.txt") is False
    files.write(f"{folder}/taken", "x", user="root")
    files.write(f"{folder}/taken", "y")
    assert files.get_info(f"{folder}/taken").owner == "user"


# envd: F16
def test_metadata_of_files(sandbox, files, folder):
    path = f"{folder}/tagged"
    assert files.write(path, "x", metadata={"Author": "Ada", "step": "1 of 2"}).metadata == {
        "author": "Ada",
        "step": "1 of 2",
    }
    assert files.get_info(path).metadata == {"author": "Ada", "step": "1 of 2"}
    assert files.list(folder)[0].metadata == {"author": "Ada", "step": "1 of 2"}
    assert files.rename(path, f"{path}2").metadata == {"author": "Ada", "step": "1 of 2"}
    files.write(f"{path}2", "y", metadata={"step": "2 of 2"}, use_octet_stream=True)
    assert files.get_info(f"{path}2").metadata == {"step": "2 of 2"}
    files.write(f"{path}2", "z")
    assert files.get_info(f"{path}2").metadata is None
    command = (
        f"import os; os.setxattr('{path}2', 'user.e2b.from', b'inside'); os.setxattr('{path}2', 'user.other', b'no')"
    )
    sandbox.commands.run(f'python3 -c "{command}"')
    assert files.get_info(f"{path}2").metadata == {"from": "inside"}
    # All files of one request get the same metadata.
    entries = [WriteEntry(path=f"{folder}/several/{number}", data="x") for number in range(3)]
    assert [info.metadata for info in files.write_files(entries, metadata={"batch": "7"})] == [{"batch": "7"}] * 3
    assert [entry.metadata for entry in files.list(f"{folder}/several")] == [{"batch": "7"}] * 3


# envd: F16
def test_invalid_metadata_is_rejected(sandbox, files, edge, folder):
    for metadata in ({"": "x"}, {"a b": "x"}, {"key": "ü"}, {"key": "line\n"}):
        with pytest.raises(InvalidArgumentException):
            files.write(f"{folder}/refused", "x", metadata=metadata)
    # The daemon rejects metadata that no SDK sends, before it writes the file.
    headers = {**by_headers(sandbox.sandbox_id, ENVD_PORT), "X-Access-Token": sandbox._envd_access_token}
    headers["Content-Type"] = "application/octet-stream"
    for name, value in (
        (b"X-Metadata-Key", "ü".encode()),
        (b"X-Metadata-" + b"k" * 247, b"x"),
        (b"X-Metadata-Key", b"v" * 4097),
    ):
        sent = [*((key.encode(), text.encode()) for key, text in headers.items()), (name, value)]
        response = edge.post("/files", params={"path": f"{folder}/refused"}, headers=sent, content=b"x")
        assert response.status_code == 400 and "invalid metadata" in response.json()["message"], response.text
    assert not files.exists(f"{folder}/refused")


# envd: S2, S3, S4, S5, S6
def test_signed_urls(sandbox, files, edge, folder):
    """The SDK signs the URLs; requests are routed by host name, as in production."""
    headers = by_host(sandbox.sandbox_id, ENVD_PORT)

    def get(url, **options):
        return edge.get(url, headers=headers, **options)

    path = f"{folder}/signed name+1.txt"
    files.write(path, "for everyone with the address")
    url = sandbox.download_url(path)
    assert get(url).text == "for everyone with the address"
    assert get(sandbox.download_url(path, use_signature_expiration=60)).status_code == 200
    for user, home in (("user", "/home/user"), ("root", "/root")):
        upload = edge.post(sandbox.upload_url("hello.txt", user=user), headers=headers, files={"file": ("", b"hi")})
        assert upload.json() == [{"name": "hello.txt", "path": f"{home}/hello.txt", "type": "file"}], upload.text
        assert get(sandbox.download_url("hello.txt", user=user)).text == "hi"

    expired = get(sandbox.download_url(path, use_signature_expiration=-60))
    assert (expired.status_code, expired.json()) == (401, {"code": 401, "message": "signature is already expired"})
    without = sandbox.download_url(path, use_signature_expiration=60).split("&signature_expiration")[0]
    response = get(without)
    assert (response.status_code, response.json()) == (401, {"code": 401, "message": "invalid signature"})
    unsigned = get(url.split("&signature")[0])
    assert (unsigned.status_code, unsigned.json()["code"]) == (401, 401)
    # A signature for reading does not permit writing.
    assert edge.post(url, headers=headers, files={"file": ("x", b"hi")}).status_code == 401
    missing = get(sandbox.download_url(f"{folder}/demo/test.txt"))
    assert (missing.status_code, missing.json()) == (
        404,
        {"code": 404, "message": f"path '{folder}/demo/test.txt' does not exist"},
    )


def test_range_requests(sandbox, files, edge, folder):
    headers = by_host(sandbox.sandbox_id, ENVD_PORT)
    files.write(f"{folder}/parts.txt", "0123456789" * 100)
    url = sandbox.download_url(f"{folder}/parts.txt")
    part = edge.get(url, headers={**headers, "Range": "bytes=5-14"})
    assert (part.status_code, part.text, part.headers["Content-Range"]) == (206, "5678901234", "bytes 5-14/1000")
    assert edge.get(url, headers={**headers, "Range": "bytes=1000-"}).status_code == 416
    with edge.stream("GET", url, headers={**headers, "Accept-Encoding": "gzip"}) as packed:
        assert packed.headers["Content-Encoding"] == "gzip"
        assert gzip.decompress(b"".join(packed.iter_raw())) == b"0123456789" * 100


def abandon(edge, sandbox, count: int, path: str) -> None:
    """Requests a file that sends no data `count` times, and cancels each request."""
    headers = {**by_headers(sandbox.sandbox_id, ENVD_PORT), "X-Access-Token": sandbox._envd_access_token}

    def give_up(_) -> None:
        with pytest.raises(httpx.TimeoutException):
            edge.get("/files", params={"path": path}, headers=headers, timeout=httpx.Timeout(30, read=0.3))

    with ThreadPoolExecutor(max_workers=50) as pool:
        list(pool.map(give_up, range(count)))


def test_abandoned_reads_of_a_pipe_block_nothing(sandbox, files, edge, folder):
    sandbox.commands.run(f"mkfifo {folder}/pipe")
    abandon(edge, sandbox, 300, f"{folder}/pipe")
    assert sandbox.commands.run("echo works", timeout=20).stdout == "works\n"
    files.write(f"{folder}/file", "works")
    assert files.read(f"{folder}/file") == "works"
    # A reader that still waits gets the data.
    writer = sandbox.commands.run(f"echo through the pipe > {folder}/pipe", background=True)
    assert files.read(f"{folder}/pipe") == "through the pipe\n"
    writer.wait()


def test_an_unresponsive_mount_blocks_nothing_else(sandbox, files, edge, folder):
    files.write("/root/fuse_mount.py", program("fuse_mount.py"), user="root")
    command = "mkdir -p /mnt/silent && exec python3 /root/fuse_mount.py /mnt/silent"
    server = sandbox.commands.run(command, background=True, timeout=0, user="root")
    assert next(iter(server))[0] == "mounted\n"
    sandbox.commands.run(f"kill -STOP {server.pid}", user="root")
    try:
        abandon(edge, sandbox, 300, "/mnt/silent/file")
        assert sandbox.commands.run("echo works", timeout=20).stdout == "works\n"
        files.write(f"{folder}/file", "works")
        assert files.read(f"{folder}/file") == "works"
    finally:
        # After the server's exit, the kernel fails its pending requests.
        server.kill()
    sandbox.commands.run("umount -l /mnt/silent", user="root")
    assert not files.exists("/mnt/silent/file")


class Broken(Exception):
    """Failure of the client in the middle of an upload."""


def test_an_interrupted_upload_changes_nothing(sandbox, files, edge, folder):
    files.write(f"{folder}/kept", "old")
    headers = {**by_headers(sandbox.sandbox_id, ENVD_PORT), "X-Access-Token": sandbox._envd_access_token}
    headers["Content-Type"] = "application/octet-stream"

    def broken() -> Iterator[bytes]:
        yield b"n" * MIB
        raise Broken

    for name in ("kept", "new"):
        with pytest.raises(Broken):
            edge.post("/files", params={"path": f"{folder}/{name}"}, headers=headers, content=broken())
        assert [entry.name for entry in files.list(folder)] == ["kept"]
        assert files.read(f"{folder}/kept") == "old"
    assert sandbox.commands.run(f"ls -A {folder}").stdout == "kept\n"


def test_renames_across_file_systems(sandbox, files, folder):
    name = folder.rsplit("/", 1)[1]
    files.write(f"{folder}/tree/deep/file", "text", metadata={"author": "Ada"})
    sandbox.commands.run(f"cd {folder}/tree && ln -s deep link && chmod 750 deep && touch -d @1000000000 deep/file")
    described = "stat -c '%n %U %a %Y' deep/file && stat -c '%n %F %U %a' deep link"
    before = sandbox.commands.run(described, cwd=f"{folder}/tree").stdout
    moved = files.rename(f"{folder}/tree", f"/dev/shm/{name}/tree")
    assert (moved.path, moved.type) == (f"/dev/shm/{name}/tree", FileType.DIR)
    assert sandbox.commands.run(described, cwd=f"/dev/shm/{name}/tree").stdout == before
    assert not files.exists(f"{folder}/tree")
    moved = files.rename(f"/dev/shm/{name}/tree/deep/file", f"{folder}/file")
    assert moved.size == 4 and files.read(f"{folder}/file") == "text"
    files.remove(f"/dev/shm/{name}")


def test_kernel_settings_can_be_written(files):
    files.write("/proc/sys/kernel/domainname", "journeys", user="root")
    assert files.read("/proc/sys/kernel/domainname") == "journeys\n"


def test_overwriting_preserves_mode_and_links(sandbox, files, folder):
    files.write(f"{folder}/script", "#!/bin/sh\necho one\n")
    sandbox.commands.run("chmod 755 script && ln script other && ln -s script link", cwd=folder)
    files.write(f"{folder}/link", "#!/bin/sh\necho two\n")
    assert sandbox.commands.run("./script && ./other && readlink link", cwd=folder).stdout == "two\ntwo\nscript\n"
