//! The checklist itself, in our own words.

/// One line: something that clients or the platform rely on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line {
    pub(super) id: &'static str,
    pub(super) what: &'static str,
    /// Which part of it is not built yet, and when it comes. Empty: all of it is proven.
    pub(super) unbuilt: &'static str,
}

/// The lines of one subject.
#[derive(Debug, Clone, Copy)]
pub(super) struct Group {
    pub(super) name: &'static str,
    pub(super) lines: &'static [Line],
}

/// Whether there is such a line.
pub(super) fn is_known(id: &str) -> bool {
    GROUPS.iter().flat_map(|group| group.lines).any(|line| line.id == id)
}

const fn built(id: &'static str, what: &'static str) -> Line {
    Line { id, what, unbuilt: "" }
}

/// All lines, in their order.
pub(super) const GROUPS: &[Group] = &[
    Group { name: "Commands", lines: COMMANDS },
    Group { name: "Terminals", lines: TERMINALS },
    Group { name: "Files", lines: FILES },
    Group { name: "Watching", lines: WATCHING },
    Group { name: "Security and signatures", lines: SECURITY },
    Group { name: "Platform", lines: PLATFORM },
];

const COMMANDS: &[Line] = &[
    built("C1", "`echo` gives plain text, text full of shell signs and text of several lines back as it is"),
    built("C2", "a command within its time succeeds; one beyond it fails with a timeout, awaited or in the background"),
    built("C3", "a bad exit raises the exit error with its code and both outputs"),
    built(
        "C4",
        "output that ends within a letter arrives with a replacement; letters cut between chunks are whole again",
    ),
    built("C5", "a background command has a pid, and connecting to it gives the same one"),
    built("C6", "connecting to a pid that nobody has: not found"),
    built("C7", "a kill tells success, and the process is gone at that moment"),
    built("C8", "killing a pid that nobody has tells that there was none"),
    built("C9", "the list shows background commands with their pids"),
    built("C10", "the sandbox's environment is in every command, a command's own only in that one"),
    built("C11", "`cat` echoes its input exactly: text, bytes, nothing, shell signs, several lines"),
    built("C12", "closing the input lets `cat` end well, with all its output"),
    built("C13", "`read` without input, as root, exits with 1"),
    built("C14", "a working directory that is gone or closed to the user is an error; `~/dir` works"),
    built("C15", "a killed shell with a child, and a killed dev server: the stream ends well and the list is empty"),
    built("C16", "a sandbox that is killed under a command: a timeout error that says so"),
    built("C17", "who subscribes late hears the end; who disconnects kills nothing"),
    built("C18", "streamed input: in order, with keepalives between, not found for an unknown pid"),
    built("C19", "the git helpers work: init, add, commit, branches, clone, push, pull, status, configuration"),
];

const TERMINALS: &[Line] = &[
    built("P1", "a terminal of 80x24 with environment and working directory takes input and exits well"),
    built("P2", "left and joined again by pid: the same pid, only new output, a good exit"),
    built("P3", "`tput cols` says 80, and 100 after a resize"),
    built("P4", "a kill tells success and the process is gone; an unknown pid tells that there was none"),
    built("P5", "typing `exit` ends it with code 0"),
];

const FILES: &[Line] = &[
    built("F1", "a write tells name, absolute path and type, makes missing parents, and reads back the same"),
    built("F2", "overwriting replaces; many writes at once into one new tree all succeed"),
    built("F3", "ten files in one request, relative and absolute, told in the order of the request"),
    built("F4", "text, bytes, blobs and streams; as a form, raw and compressed, both ways; 230 KB as a stream"),
    built("F5", "an empty file reads as empty text, bytes, blob and stream"),
    built("F6", "reading a missing file: file not found, in every format"),
    built("F7", "lists to depth 1, 2 and 3 in exact order; a depth below 1 is refused by the client"),
    built("F8", "an entry's mode, permissions, owner, group, size, time with its zone, and no link target"),
    built("F9", "the shell's files in the home folder belong to the user"),
    built("F10", "a relative list tells paths below the home folder"),
    built("F11", "a file, a folder and a link described: the link under its own name with its target's absolute path"),
    built("F12", "whether something exists"),
    built("F13", "making a folder: new, existing, nested"),
    built("F14", "renaming tells the new entry, the old one is gone; a missing source is file not found"),
    built("F15", "removing a file and a folder; a missing one is no error"),
    built(
        "F16",
        "metadata: by form and raw uploads, for each file of a request, told by write, info and list, kept by a rename, cleared by \
         an overwrite, set from inside, refused when invalid",
    ),
];

const WATCHING: &[Line] = &[
    built("W1", "an overwrite is a WRITE with the file's name"),
    built("W2", "recursive: names below the folder, also of a folder made later and of a file put into it right away"),
    built("W3", "an entry with name, absolute path and type on WRITE; none unasked, never on REMOVE"),
    built("W4", "network mounts allowed is harmless elsewhere; a FUSE mount is refused without and accepted with it"),
    built("W5", "a missing folder is file not found, a file instead of a folder an error"),
    built(
        "W6",
        "polling: nothing at first, exactly three events for a new file, also below, CREATE first, available at once",
    ),
    built("W7", "a removed watcher is an error at the next poll"),
    built("W8", "stopping a streamed watch ends it without an error"),
];

const SECURITY: &[Line] = &[
    built("S1", "a call without the token is 401 in the form that clients read as unauthenticated"),
    built("S2", "signed downloads and uploads work for `user` and `root`"),
    built("S3", "an expired signature: 401, exact body"),
    built("S4", "a signature with an expiry, used without it: 401, exact body"),
    built("S5", "no signature: 401"),
    built("S6", "a good signature for a missing file: 404, exact body"),
    built("S7", "a sandbox without a token: plain addresses work"),
    Line {
        id: "S8",
        what: "the token is required and accepted, also after pause and resume and after a reboot",
        unbuilt: "after pause and resume, and after a reboot: both come with pause and resume; until then only a fresh sandbox",
    },
    built("S9", "signatures equal the published examples"),
    built("S10", "`/init` through the public address is the edge's 404, whatever the token"),
];

const PLATFORM: &[Line] = &[
    built("X1", "a server on `0.0.0.0`, `::`, `127.0.0.1`, `localhost` or `::1` is reached from outside"),
    Line {
        id: "X2",
        what: "`GET $E2B_EVENTS_ADDRESS/me` in the guest tells the sandbox's own id, also after pause and resume",
        unbuilt: "after pause and resume: comes with them",
    },
    Line {
        id: "X3",
        what: "`/etc/ssl/certs` is in memory, and a CA given by `/init` is in its bundle, also after a reboot and in builds",
        unbuilt: "after a reboot: comes with pause and resume; in builds: comes with template builds",
    },
    built("X4", "a closed port and an unknown sandbox: the edge's messages"),
    Line {
        id: "X5",
        what: "volumes keep files from one sandbox to the next",
        unbuilt: "volumes come in a later issue; `/init` refuses `volumeMounts` by name until then",
    },
    Line {
        id: "X6",
        what: "processes and memory survive pause and resume, and the clock is right afterwards",
        unbuilt: "pause and resume come in a later issue",
    },
    Line {
        id: "X7",
        what: "a pause of the file system alone keeps every acknowledged write",
        unbuilt: "pause comes in a later issue",
    },
    built("X8", "metrics have plausible values, and the host reports them"),
    built("X9", "`/envs` from inside, with the token, tells the sandbox's environment: what code-interpreter asks for"),
    Line {
        id: "X10",
        what: "builds: uploads, steps as other users, start command, default user and working directory",
        unbuilt: "template builds come in a later issue",
    },
];
