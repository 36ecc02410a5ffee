//! The unary calls of the file system service.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use hearth_envd_api::filesystem::{
    EntryInfo, FileType, ListDirRequest, ListDirResponse, MakeDirRequest, MakeDirResponse, MoveRequest, MoveResponse,
    RemoveRequest, RemoveResponse, StatRequest, StatResponse,
};
use tempfile::TempDir;

use crate::connect::{CODECS, Codec, RpcError, unary_with};
use crate::daemon::{Daemon, other_user, test_user};
use crate::http::post;
use crate::process::basic;

const SERVICE: &str = "/filesystem.Filesystem/";
type Headers<'a> = &'a [(&'a str, &'a str)];

impl Daemon {
    pub(crate) async fn stat(&self, codec: Codec, path: &str) -> Result<EntryInfo, RpcError> {
        let request = StatRequest { path: path.to_owned(), ..Default::default() };
        let response: StatResponse = unary_with(self, codec, &format!("{SERVICE}Stat"), &[], &request).await?;
        Ok(response.entry.into_option().expect("set"))
    }

    async fn list_dir(&self, path: &str, depth: u32) -> Result<Vec<EntryInfo>, RpcError> {
        let request = ListDirRequest { path: path.to_owned(), depth, ..Default::default() };
        let response: ListDirResponse =
            unary_with(self, Codec::Json, &format!("{SERVICE}ListDir"), &[], &request).await?;
        Ok(response.entries)
    }

    async fn make_dir(&self, headers: Headers<'_>, path: &str) -> Result<EntryInfo, RpcError> {
        let request = MakeDirRequest { path: path.to_owned(), ..Default::default() };
        let response: MakeDirResponse =
            unary_with(self, Codec::Json, &format!("{SERVICE}MakeDir"), headers, &request).await?;
        Ok(response.entry.into_option().expect("set"))
    }

    async fn rename(&self, source: &str, destination: &str) -> Result<EntryInfo, RpcError> {
        let request =
            MoveRequest { source: source.to_owned(), destination: destination.to_owned(), ..Default::default() };
        let response: MoveResponse = unary_with(self, Codec::Json, &format!("{SERVICE}Move"), &[], &request).await?;
        Ok(response.entry.into_option().expect("set"))
    }

    async fn remove(&self, path: &str) -> Result<(), RpcError> {
        let request = RemoveRequest { path: path.to_owned(), ..Default::default() };
        let removed: Result<RemoveResponse, _> =
            unary_with(self, Codec::Json, &format!("{SERVICE}Remove"), &[], &request).await;
        removed.map(drop)
    }
}

/// A temporary directory, with its paths as text.
pub(crate) struct TestDirectory(TempDir);

impl TestDirectory {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("create a temporary directory"))
    }

    pub(crate) fn path(&self, name: &str) -> String {
        let path = if name.is_empty() { self.0.path().to_owned() } else { self.0.path().join(name) };
        path.to_str().expect("UTF-8").to_owned()
    }

    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(name), text).expect("write");
    }
}

pub(crate) fn code<T: std::fmt::Debug>(result: Result<T, RpcError>) -> String {
    result.expect_err("error").code
}

// envd: F8, F11, F12
#[tokio::test]
async fn entries_describe_files() {
    let daemon = Daemon::start().await;
    let directory = TestDirectory::new();
    directory.write("file.txt", "13 bytes long");
    fs::set_permissions(directory.path("file.txt"), fs::Permissions::from_mode(0o644)).expect("set");
    fs::create_dir(directory.path("dir")).expect("create");
    fs::set_permissions(directory.path("dir"), fs::Permissions::from_mode(0o755)).expect("set");
    symlink(directory.path("file.txt"), directory.path("link")).expect("link");
    symlink(directory.path("gone"), directory.path("broken")).expect("link");
    let group = std::process::Command::new("id").arg("-gn").output().expect("run").stdout;
    let group = String::from_utf8(group).expect("UTF-8").trim().to_owned();
    let real = fs::canonicalize(directory.path("file.txt")).expect("exists");
    let real = real.to_str().expect("UTF-8");
    let broken = directory.path("broken");
    for codec in CODECS {
        for (name, kind, mode, permissions, target) in [
            ("file.txt", FileType::FILE_TYPE_FILE, 0o644, "-rw-r--r--", None),
            ("dir", FileType::FILE_TYPE_DIRECTORY, 0o755, "drwxr-xr-x", None),
            ("link", FileType::FILE_TYPE_FILE, 0o644, "Lrwxrwxrwx", Some(real)),
            ("broken", FileType::FILE_TYPE_UNSPECIFIED, 0, "Lrwxrwxrwx", Some(broken.as_str())),
        ] {
            let entry = daemon.stat(codec, &directory.path(name)).await.expect("exists");
            let found = fs::symlink_metadata(directory.path(name)).expect("exists");
            assert_eq!((entry.name.as_str(), entry.path.as_str()), (name, directory.path(name).as_str()));
            assert_eq!((entry.r#type.as_known(), entry.mode), (Some(kind), mode), "{name}");
            assert_eq!((entry.permissions.as_str(), entry.symlink_target.as_deref()), (permissions, target), "{name}");
            assert_eq!((entry.owner.as_str(), entry.group.as_str()), (test_user().as_str(), group.as_str()));
            assert_eq!(u64::try_from(entry.size).expect("not negative"), found.size());
            let time = entry.modified_time.into_option().expect("set");
            assert_eq!((time.seconds, i64::from(time.nanos)), (found.mtime(), found.mtime_nsec()));
        }
    }
    let missing = daemon.stat(Codec::Proto, &directory.path("gone")).await.expect_err("missing");
    assert_eq!(
        (missing.code.as_str(), missing.message),
        ("not_found", format!("file not found: {}", directory.path("gone")))
    );
    assert_eq!(code(daemon.stat(Codec::Json, &directory.path("file.txt/x")).await), "internal");
    assert_eq!(code(daemon.stat(Codec::Json, "~other/x").await), "invalid_argument");
}

#[tokio::test]
async fn relative_paths_start_at_home() {
    let daemon = Daemon::start().await;
    let home = crate::daemon::account(|name, _| name == test_user()).expect("exists").2;
    let home = home.trim_end_matches('/').to_owned();
    for (path, expected) in [(".", home.clone()), ("~", home.clone()), ("~/.", home.clone()), ("", home.clone())] {
        assert_eq!(daemon.stat(Codec::Json, path).await.expect("exists").path, expected, "{path}");
    }
    assert_eq!(daemon.stat(Codec::Json, "/etc/../etc/passwd").await.expect("exists").path, "/etc/../etc/passwd");
    let missing = daemon.stat(Codec::Json, "no-such-file-of-a-test").await.expect_err("missing");
    assert_eq!(missing.message, format!("file not found: {home}/no-such-file-of-a-test"));
}

// envd: F7
#[tokio::test]
async fn listings_have_depth_and_order() {
    let daemon = Daemon::start().await;
    let directory = TestDirectory::new();
    assert_eq!(daemon.list_dir(&directory.path(""), 1).await, Ok(Vec::new()));
    for folder in ["subdir1/subdir1_1", "subdir1/subdir1_2", "subdir2/subdir2_1"] {
        fs::create_dir_all(directory.path(folder)).expect("create");
    }
    directory.write("file1.txt", "x");
    directory.write("subdir1/file2.txt", "x");
    symlink(directory.path("subdir1"), directory.path("tolink")).expect("link");
    let listed = async |depth| -> Vec<String> {
        let entries = daemon.list_dir(&directory.path(""), depth).await.expect("list");
        entries
            .into_iter()
            .map(|entry| entry.path.strip_prefix(&directory.path("")).expect("below")[1..].to_owned())
            .collect()
    };
    let one = ["file1.txt", "subdir1", "subdir2", "tolink"];
    assert_eq!(listed(0).await, one);
    assert_eq!(listed(1).await, one);
    let two = [
        "file1.txt",
        "subdir1",
        "subdir1/file2.txt",
        "subdir1/subdir1_1",
        "subdir1/subdir1_2",
        "subdir2",
        "subdir2/subdir2_1",
        "tolink",
    ];
    assert_eq!(listed(2).await, two);
    assert_eq!(code(daemon.list_dir(&directory.path("gone"), 1).await), "not_found");
    let file = daemon.list_dir(&directory.path("file1.txt"), 1).await.expect_err("not a directory");
    assert_eq!(file.code, "invalid_argument");
    assert!(file.message.starts_with("path is not a directory: "));
}

// envd: F13, F14, F15
#[tokio::test]
async fn directories_are_created_moved_and_removed() {
    let daemon = Daemon::start().await;
    let directory = TestDirectory::new();
    let made = daemon.make_dir(&[], &directory.path("a/b/c")).await.expect("create");
    assert_eq!((made.name.as_str(), made.permissions.as_str()), ("c", "drwxr-xr-x"));
    let again = daemon.make_dir(&[], &directory.path("a/b/c")).await.expect_err("already exists");
    assert_eq!(
        (again.code.as_str(), again.message),
        ("already_exists", format!("directory already exists: {}", directory.path("a/b/c")))
    );
    directory.write("file", "text");
    assert_eq!(code(daemon.make_dir(&[], &directory.path("file")).await), "invalid_argument");
    assert_eq!(code(daemon.make_dir(&[], &directory.path("file/x")).await), "internal");
    let moved = daemon.rename(&directory.path("file"), &directory.path("new/folder/name")).await.expect("move");
    assert_eq!((moved.name.as_str(), moved.path.as_str()), ("name", directory.path("new/folder/name").as_str()));
    let gone = daemon.rename(&directory.path("file"), &directory.path("x")).await.expect_err("missing");
    assert_eq!(
        (gone.code.as_str(), gone.message),
        ("not_found", format!("source file not found: {}", directory.path("file")))
    );
    assert_eq!(code(daemon.rename(&directory.path("new"), &directory.path("a")).await), "internal", "not empty");
    // A file replaces a file, but not a directory.
    directory.write("other", "other");
    daemon.rename(&directory.path("new/folder/name"), &directory.path("other")).await.expect("replace");
    assert_eq!(fs::read_to_string(directory.path("other")).expect("exists"), "text");
    assert_eq!(code(daemon.rename(&directory.path("other"), &directory.path("a")).await), "internal");
    symlink(directory.path("a"), directory.path("link")).expect("link");
    for name in ["link", "other", "new", "nothing"] {
        daemon.remove(&directory.path(name)).await.expect("remove");
        assert!(fs::symlink_metadata(directory.path(name)).is_err());
    }
    assert!(fs::metadata(directory.path("a/b/c")).is_ok(), "links are not followed");
    daemon.remove(&directory.path("a")).await.expect("remove");
    // Concurrent calls create one tree.
    let names: Vec<String> = (0..20).map(|number| directory.path(&format!("t/r/e/e/{number}"))).collect();
    for made in futures::future::join_all(names.iter().map(|name| daemon.make_dir(&[], name))).await {
        made.expect("create");
    }
}

/// Checks that a move to another file system has the effect of a rename.
#[tokio::test]
async fn moves_reach_other_file_systems() {
    let daemon = Daemon::start().await;
    let (directory, Ok(memory)) = (TestDirectory::new(), tempfile::tempdir_in("/dev/shm")) else {
        eprintln!("skipped: /dev/shm does not exist");
        return;
    };
    let to = |name: &str| memory.path().join(name).to_str().expect("UTF-8").to_owned();
    directory.write("file", "text");
    fs::create_dir_all(directory.path("tree/deep")).expect("create");
    directory.write("tree/deep/file", "deep");
    let moved = daemon.rename(&directory.path("file"), &to("new/name")).await.expect("move");
    assert_eq!((moved.name.as_str(), moved.path, moved.size), ("name", to("new/name"), 4));
    let moved = daemon.rename(&directory.path("tree"), &to("tree")).await.expect("move");
    assert_eq!(moved.r#type.as_known(), Some(FileType::FILE_TYPE_DIRECTORY));
    assert_eq!(fs::read_to_string(to("tree/deep/file")).expect("exists"), "deep");
    assert_eq!(fs::read_dir(directory.path("")).expect("list").count(), 0);
    assert_eq!(fs::read_dir(memory.path()).expect("list").count(), 2);
    assert_eq!(code(daemon.rename(&directory.path("file"), &to("x")).await), "not_found");
    assert_eq!(code(daemon.rename(&to("new/name"), &directory.path("")).await), "internal");
    daemon.rename(&to("new/name"), &directory.path("back")).await.expect("move back");
    assert_eq!(fs::read_to_string(directory.path("back")).expect("exists"), "text");
}

#[tokio::test]
async fn created_directories_belong_to_the_user() {
    let daemon = Daemon::start().await;
    let Some((name, uid)) = other_user() else { return };
    let directory = TestDirectory::new();
    let user = basic(&name);
    let made = daemon.make_dir(&[("authorization", &user)], &directory.path("a/b")).await.expect("create");
    assert_eq!(made.owner, name);
    for folder in ["a", "a/b"] {
        assert_eq!(fs::metadata(directory.path(folder)).expect("exists").uid(), uid);
    }
    assert_eq!(fs::metadata(directory.path("")).expect("exists").uid(), 0, "the existing directory keeps its owner");
}

#[tokio::test]
async fn clients_of_the_first_schema_get_its_fields() {
    let daemon = Daemon::start().await;
    let directory = TestDirectory::new();
    directory.write("file", "text");
    let json = ("content-type", "application/json");
    let body = format!(r#"{{"path":"{}","depth":1}}"#, directory.path(""));
    let file = format!(r#"{{"path":"{}"}}"#, directory.path("file"));
    let known = serde_json::json!({ "name": "file", "type": "FILE_TYPE_FILE", "path": directory.path("file") });
    let old = [json, ("user-agent", "connect-python")];
    for (method, body, expected) in [
        ("ListDir", &body, serde_json::json!({ "entries": [known] })),
        ("Stat", &file, serde_json::json!({ "entry": known })),
    ] {
        let reply = post(&daemon, &format!("{SERVICE}{method}"), &old, body.clone()).await;
        assert_eq!((reply.json(), reply.header("x-e2b-legacy-sdk")), (expected, Some("true")));
        let reply =
            post(&daemon, &format!("{SERVICE}{method}"), &[json, ("user-agent", "connect-python/2")], body.clone())
                .await;
        assert!(reply.text().contains("permissions") && reply.header("x-e2b-legacy-sdk").is_none());
    }
}
