"""Mounts an empty FUSE file system that this program serves, like a network mount.

Arguments: an empty folder, and the ID of the user who owns the mount (default: root).
Uses only the standard library, and the part of the kernel's FUSE protocol (linux/fuse.h) that an empty folder needs.
"""

import ctypes
import errno
import os
import stat
import struct
import sys

LOOKUP, FORGET, GETATTR, STATFS, INIT, OPENDIR, READDIR, RELEASEDIR, ACCESS = 1, 2, 3, 17, 26, 27, 28, 29, 34
INTERRUPT, BATCH_FORGET = 36, 42
WITHOUT_REPLY = (FORGET, INTERRUPT, BATCH_FORGET)
VERSION = (7, 31)
MOUNT_FLAGS = 2 | 4  # MS_NOSUID, MS_NODEV
# Larger than any request for an empty folder; the kernel rejects a buffer below 8 KiB.
REQUEST_MAX = 128 * 1024

folder = {
    INIT: struct.pack("<4I2H2I2HI7I", *VERSION, 0, 0, 12, 9, 4096, 1, 1, 0, *[0] * 8),
    GETATTR: struct.pack("<Q2I6Q10I", 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, stat.S_IFDIR | 0o755, 2, 0, 0, 0, 4096, 0),
    STATFS: struct.pack("<5Q4I6I", 0, 0, 0, 0, 0, 4096, 255, 4096, *[0] * 7),
    OPENDIR: bytes(16),
    READDIR: b"",
    RELEASEDIR: b"",
    ACCESS: b"",
}

device = os.open("/dev/fuse", os.O_RDWR)
owner = sys.argv[2] if len(sys.argv) > 2 else "0"
options = f"fd={device},rootmode={stat.S_IFDIR:o},user_id={owner},group_id={owner},allow_other"
libc = ctypes.CDLL(None, use_errno=True)
if libc.mount(b"remote", sys.argv[1].encode(), b"fuse.remote", MOUNT_FLAGS, options.encode()) != 0:
    raise OSError(ctypes.get_errno(), "mounting")
print("mounted", flush=True)
while True:
    try:
        request = os.read(device, REQUEST_MAX)
    except OSError as error:
        # ENODEV: the file system was unmounted.
        if error.errno == errno.ENODEV:
            break
        raise
    _, operation, number = struct.unpack_from("<IIQ", request)
    if operation in WITHOUT_REPLY:
        continue
    reply = folder.get(operation)
    failure = 0 if reply is not None else -(errno.ENOENT if operation == LOOKUP else errno.ENOSYS)
    content = reply or b""
    os.write(device, struct.pack("<IiQ", 16 + len(content), failure, number) + content)
