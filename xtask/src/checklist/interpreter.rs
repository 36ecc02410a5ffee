//! Acceptance checklist of the code interpreter.

use super::lines::{Checklist, Group, Line};
use super::markers::Language;

pub(super) const CHECKLIST: Checklist = Checklist {
    marker: "interpreter:",
    page: "docs/interpreter-checklist.md",
    head: HEAD,
    groups: &[
        Group { name: "Transport and access", lines: TRANSPORT },
        Group { name: "Basics", lines: BASICS },
        Group { name: "Languages", lines: LANGUAGES },
        Group { name: "Environment", lines: ENVIRONMENT },
        Group { name: "Contexts", lines: CONTEXTS },
        Group { name: "Interruption and recovery", lines: RECOVERY },
        Group { name: "Tables and images", lines: TABLES },
        Group { name: "Charts", lines: CHARTS },
        Group { name: "Faults", lines: FAULTS },
        Group { name: "Uniqueness", lines: UNIQUENESS },
    ],
    folders: &[
        ("crates", Language::Rust),
        ("sdk-tests/python/interpreter", Language::Python),
        ("sdk-tests/js/interpreter", Language::JavaScript),
    ],
};

const HEAD: &str = "\
# The code interpreter's acceptance checklist

Behaviour of the code interpreter on which the SDKs `e2b-code-interpreter` and `@e2b/code-interpreter` and their users rely, and
the tests that prove it. `cargo xtask checklist` generates this page from comments above the tests (`interpreter: B1, C4`).
`make check` fails if the page is stale, or if a line has no test. Python and JavaScript tests are journeys of the unmodified
official SDKs against a complete server with real microVMs of the template `code-interpreter-v1`; each Python test runs with the
synchronous and with the asynchronous SDK. Rust tests run the server of the guest alone.
";

/// Line of the SDKs' own tests: proven with both SDKs.
const fn both(id: &'static str, what: &'static str) -> Line {
    Line { id, what, needs: &[Language::Python, Language::JavaScript], unimplemented: "" }
}

/// Line that concerns the Python SDK only.
const fn python(id: &'static str, what: &'static str) -> Line {
    Line { id, what, needs: &[Language::Python], unimplemented: "" }
}

/// Line that one test proves, in any language.
const fn any(id: &'static str, what: &'static str) -> Line {
    Line { id, what, needs: &[], unimplemented: "" }
}

const TRANSPORT: &[Line] = &[
    both("T1", "the base URL is `https://49999-<id>.<domain>`; `sandboxUrl` and `E2B_SANDBOX_URL` replace it"),
    both(
        "T2",
        "with public traffic disabled, running code and creating, listing, removing and restarting contexts work with the \
         SDK's tokens",
    ),
    both("T3", "a second SDK object, connected to the sandbox ID, runs code"),
    both(
        "T4",
        "a kill of the sandbox during a 300 s sleep raises a timeout error: the sandbox was killed while the request was in \
         progress",
    ),
];

const BASICS: &[Line] = &[
    both("B1", "`x = 1; x` returns the text `1`; the state persists until the next call"),
    both("B2", "the second execution reports count 2"),
    both("B3", "one callback for one result, error, stdout and stderr each; the lists have the same single entry"),
    both("B4", "a cell that shows a plot and ends with an array expression returns exactly two results"),
    both("B5", "`!pwd` prints `/home/user`"),
    both("B6", "a raw display bundle with only LaTeX returns a first result whose formats are exactly `latex`"),
];

const LANGUAGES: &[Line] = &[
    both("L1", "the working directory is `/home/user` in Python, JavaScript, TypeScript, R, Java and bash"),
    both("L2", "each language prints a line to stdout"),
    both("L3", "JavaScript: `import { readFileSync } from 'fs'` works; top-level await returns the value as text"),
    both("L4", "TypeScript: an annotated constant is printed"),
];

const ENVIRONMENT: &[Line] = &[both(
    "E1",
    "in bash, Java, JavaScript, Python and R, a sandbox variable is visible; a variable of one execution is visible in that \
     execution only, and overrides a sandbox variable in that execution only",
)];

const CONTEXTS: &[Line] = &[
    both("C1", "a new context equals the last of the list; also with language `python` and directory `/root`"),
    both("C2", "the list contains `python` and `javascript` from the start"),
    both("C3", "a removed context is not listed"),
    both("C4", "after a restart, a variable raises `NameError` with the value `name 'x' is not defined`"),
    both("C5", "variables of the default context are not visible in a new one"),
    both("C6", "the SDK rejects a context together with a language"),
];

const RECOVERY: &[Line] = &[
    both(
        "R1",
        "a client timeout of 3 s on a long sleep fails on the client; 5 s later, `1 + 1` returns `2` within 10 s",
    ),
    both("R2", "after SIGKILL of the server, health is back within 30 s and code runs"),
    python("R3", "the execution timeout is the deadline of the whole request; 0 disables it"),
];

const TABLES: &[Line] = &[
    both("D1", "a `DataFrame` with column `a` returns `data` with key `a` and three entries"),
    both("D2", "a shown plot returns a first result with `png` and `text`, and empty `extra`"),
    both("D3", "an image of PIL returns a first result with `png`: `show()`, last expression, `save(\"x.png\")`"),
];

const CHARTS: &[Line] = &[
    both("G1", "bar: title, both labels, no units, four elements with labels, values and groups"),
    both("G2", "box: three boxes with exact quartiles and outliers, in the shown orientation"),
    both("G3", "line with dates: units, `datetime` scale, ISO ticks, two lines of 100 points"),
    both("G4", "log axis: scale `log`, unit `log scale`"),
    both("G5", "pie: angles 324 and 36, radius 1"),
    both("G6", "scatter: two labelled collections with 5 and 10 points, no title"),
    both("G7", "two sub-plots: a superchart with the figure's title and typed elements"),
    both("G8", "a categorical y axis is recognised; two circles are of type `unknown`, with a title and no elements"),
    python("G9", "`to_json()` of an execution contains the chart"),
];

const FAULTS: &[Line] = &[
    any("F1", "a kernel that exits is reported as `ContextRestarting`, and the next execution has count 1"),
    any("F2", "a kernel killed for lack of memory is reported, and the next execution works"),
    any("F3", "100 MB of output arrive completely, and the server's memory does not grow by it"),
    any("F4", "10 000 small outputs arrive completely and in order"),
    any("F5", "after a client leaves a cell that never ends, the next execution works"),
    any("F6", "64 contexts work, one more is rejected with a clear error, and the rest works"),
    any(
        "F7",
        "code with NUL, U+2028, U+0085 and emoji runs or fails with a clear error, and output with them is unchanged",
    ),
    any("F8", "a request that is not UTF-8 or has a lone surrogate is rejected with a clear error"),
    any("F9", "output that is not UTF-8 arrives with replacement characters"),
];

const UNIQUENESS: &[Line] = &[
    any(
        "U1",
        "two sandboxes of the template return different random numbers, UUIDs and temporary names in all languages",
    ),
    any("U2", "a warm context has new random numbers once per restore; a seed that the user sets stays"),
];
