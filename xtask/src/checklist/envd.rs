//! Acceptance checklist of the guest daemon.

use super::lines::{Checklist, Group, Line};
use super::markers::Language;

pub(super) const CHECKLIST: Checklist = Checklist {
    marker: "envd:",
    page: "docs/envd-checklist.md",
    head: HEAD,
    groups: GROUPS,
    folders: &[
        ("crates", Language::Rust),
        ("sdk-tests/python/tests", Language::Python),
        ("sdk-tests/js/tests", Language::JavaScript),
    ],
};

const HEAD: &str = "\
# The guest daemon's acceptance checklist

Behaviour of the guest daemon (envd) on which clients and the platform rely, and the tests that prove it.
`cargo xtask checklist` generates this page from comments above the tests (`envd: C7, C15`). `make check` fails if the page is
stale, or if a line has neither a test nor a reason for its absence. Rust tests run the daemon alone or the host's side of it;
Python and JavaScript tests are journeys of the official SDKs against a complete server with real microVMs.
";

const fn implemented(id: &'static str, what: &'static str) -> Line {
    Line { id, what, needs: &[], unimplemented: "" }
}

const GROUPS: &[Group] = &[
    Group { name: "Commands", lines: COMMANDS },
    Group { name: "Terminals", lines: TERMINALS },
    Group { name: "Files", lines: FILES },
    Group { name: "Watching", lines: WATCHING },
    Group { name: "Security and signatures", lines: SECURITY },
    Group { name: "Platform", lines: PLATFORM },
];

const COMMANDS: &[Line] = &[
    implemented("C1", "`echo` returns plain text, text with shell metacharacters and multi-line text unchanged"),
    implemented(
        "C2",
        "a command within its timeout succeeds; a longer one fails with a timeout error, in the foreground or background",
    ),
    implemented("C3", "a non-zero exit raises the exit error with its code and both outputs"),
    implemented(
        "C4",
        "output that ends within a UTF-8 character arrives with a replacement character; characters split between chunks are \
         reassembled",
    ),
    implemented("C5", "a background command has a pid, and connecting to it returns the same pid"),
    implemented("C6", "connecting to an unknown pid: not found"),
    implemented("C7", "a kill reports success, and the process has exited by then"),
    implemented("C8", "killing an unknown pid reports that there was no process"),
    implemented("C9", "the list shows background commands with their pids"),
    implemented(
        "C10",
        "every command gets the sandbox's environment variables; a command's own variables apply to that command only",
    ),
    implemented("C11", "`cat` echoes its input exactly: text, bytes, empty input, shell metacharacters, several lines"),
    implemented("C12", "after its input is closed, `cat` exits with 0 and all its output arrives"),
    implemented("C13", "`read` without input, as root, exits with 1"),
    implemented("C14", "a working directory that does not exist or is not accessible is an error; `~/dir` works"),
    implemented(
        "C15",
        "after a kill of a shell with a child, or of a dev server, the stream ends with the exit event and the list is empty",
    ),
    implemented("C16", "a command whose sandbox is killed raises a timeout error that names the cause"),
    implemented("C17", "a late subscriber receives the end event; a disconnect does not kill the process"),
    implemented("C18", "streamed input arrives in order, with keepalives in between; an unknown pid: not found"),
    implemented("C19", "the git helpers work: init, add, commit, branches, clone, push, pull, status, configuration"),
];

const TERMINALS: &[Line] = &[
    implemented("P1", "a terminal of 80x24 with environment and working directory accepts input and exits with 0"),
    implemented("P2", "disconnect and reconnect by pid: the same pid, only new output, exit with 0"),
    implemented("P3", "`tput cols` prints 80, and 100 after a resize"),
    implemented(
        "P4",
        "a kill reports success and the process has exited; an unknown pid reports that there was no process",
    ),
    implemented("P5", "typing `exit` exits with code 0"),
];

const FILES: &[Line] = &[
    implemented(
        "F1",
        "a write returns name, absolute path and type, creates missing parents, and reads back unchanged",
    ),
    implemented("F2", "overwriting replaces; many concurrent writes to one new tree all succeed"),
    implemented("F3", "ten files in one request, relative and absolute, are returned in the order of the request"),
    implemented(
        "F4",
        "text, bytes, blobs and streams; as a form, raw and compressed, in both directions; 230 KB as a stream",
    ),
    implemented("F5", "an empty file reads as empty text, bytes, blob and stream"),
    implemented("F6", "reading a missing file: file not found, in every format"),
    implemented("F7", "lists to depth 1, 2 and 3 in exact order; the client rejects a depth below 1"),
    implemented("F8", "an entry has mode, permissions, owner, group, size, time with its zone, and no link target"),
    implemented("F9", "the shell's files in the home folder belong to the user"),
    implemented("F10", "a list of a relative path returns paths below the home folder"),
    implemented(
        "F11",
        "information about a file, a folder and a link: the link has its own name and its target's absolute path",
    ),
    implemented("F12", "a check for the existence of a file or folder"),
    implemented("F13", "creating a folder: new, existing, nested"),
    implemented(
        "F14",
        "renaming returns the new entry, and the old path no longer exists; a missing source: file not found",
    ),
    implemented("F15", "removing a file and a folder; a missing one is no error"),
    implemented(
        "F16",
        "metadata: set by form and raw uploads for each file of a request, returned by write, info and list, preserved by a \
         rename, cleared by an overwrite, set from inside the guest, rejected when invalid",
    ),
];

const WATCHING: &[Line] = &[
    implemented("W1", "an overwrite is a WRITE with the file's name"),
    implemented(
        "W2",
        "recursive: names below the folder, also of a folder created later and of a file created in it immediately",
    ),
    implemented("W3", "an entry with name, absolute path and type on WRITE if requested; never on REMOVE"),
    implemented(
        "W4",
        "the option for network mounts has no effect on other file systems; without it a FUSE mount is rejected, with it accepted",
    ),
    implemented("W5", "a missing folder: file not found; a file instead of a folder: an error"),
    implemented(
        "W6",
        "polling: no events at first, exactly three for a new file, also in subfolders, CREATE first, available immediately",
    ),
    implemented("W7", "a removed watcher is an error at the next poll"),
    implemented("W8", "stopping a streamed watch finishes it without an error"),
];

const SECURITY: &[Line] = &[
    implemented("S1", "a call without the token: 401, in the form that clients map to an authentication error"),
    implemented("S2", "signed downloads and uploads work for `user` and `root`"),
    implemented("S3", "an expired signature: 401, exact body"),
    implemented("S4", "a signature with an expiry, sent without the expiry: 401, exact body"),
    implemented("S5", "no signature: 401"),
    implemented("S6", "a valid signature for a missing file: 404, exact body"),
    implemented("S7", "a sandbox without a token: unsigned URLs work"),
    Line {
        id: "S8",
        what: "the token is required and accepted, also after pause and resume and after a reboot",
        needs: &[],
        unimplemented: "after pause and resume, and after a reboot: part of pause and resume; tested for a new sandbox only",
    },
    implemented("S9", "signatures are equal to the published examples"),
    implemented("S10", "`/init` through the public address: 404 from the edge, with or without a token"),
];

const PLATFORM: &[Line] = &[
    implemented("X1", "a server on `0.0.0.0`, `::`, `127.0.0.1`, `localhost` or `::1` is reachable from outside"),
    Line {
        id: "X2",
        what: "`GET $E2B_EVENTS_ADDRESS/me` in the guest returns the ID of its sandbox, also after pause and resume",
        needs: &[],
        unimplemented: "after pause and resume: part of pause and resume",
    },
    Line {
        id: "X3",
        what: "`/etc/ssl/certs` is in memory, and its bundle contains the CA from `/init`, also after a reboot and in builds",
        needs: &[],
        unimplemented: "after a reboot: part of pause and resume; in builds: part of template builds",
    },
    implemented("X4", "a closed port and an unknown sandbox: the edge's messages"),
    Line {
        id: "X5",
        what: "volumes preserve files from one sandbox to the next",
        needs: &[],
        unimplemented: "volumes; `/init` rejects `volumeMounts` by name until then",
    },
    Line {
        id: "X6",
        what: "processes and memory survive pause and resume, and the clock is correct afterwards",
        needs: &[],
        unimplemented: "pause and resume",
    },
    Line {
        id: "X7",
        what: "a pause of the file system alone preserves every acknowledged write",
        needs: &[],
        unimplemented: "pause",
    },
    implemented("X8", "metrics have plausible values, and the host reports them"),
    implemented(
        "X9",
        "`/envs` from inside the guest, with the token, returns the sandbox's environment, as the code interpreter requires",
    ),
    Line {
        id: "X10",
        what: "builds: uploads, steps as other users, start command, default user and working directory",
        needs: &[],
        unimplemented: "template builds",
    },
];
