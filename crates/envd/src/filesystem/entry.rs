//! Description of a file as clients see it.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use buffa_types::google::protobuf::Timestamp;
use hearth_envd_api::filesystem::{EntryInfo, FileType};

use crate::users::NameCache;

/// Prefix of the extended attributes that hold a file's metadata; the remainder of the name is the key.
pub(crate) const METADATA_PREFIX: &str = "user.e2b.";

/// Describes the entry at `path`. Blocks.
///
/// A symbolic link is described itself, with the type and the mode of its target.
pub(super) fn describe(path: &Path, names: &mut NameCache) -> io::Result<EntryInfo> {
    let own = fs::symlink_metadata(path)?;
    let is_link = own.is_symlink();
    let target = if is_link { fs::metadata(path).ok() } else { Some(own.clone()) };
    let symlink_target = is_link.then(|| {
        let resolved = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        resolved.to_string_lossy().into_owned()
    });
    let name = path.file_name().map_or_else(|| path.to_string_lossy(), std::ffi::OsStr::to_string_lossy);
    Ok(EntryInfo {
        name: name.into_owned(),
        r#type: target.as_ref().map_or(FileType::FILE_TYPE_UNSPECIFIED, file_type).into(),
        path: path.to_string_lossy().into_owned(),
        size: i64::try_from(own.size()).unwrap_or(i64::MAX),
        mode: target.as_ref().map_or(0, |target| target.mode() & 0o777),
        permissions: permissions(&own),
        owner: names.user(own.uid()),
        group: names.group(own.gid()),
        modified_time: modified(&own).into(),
        symlink_target,
        metadata: metadata_of(path).into_iter().collect(),
        ..Default::default()
    })
}

fn file_type(target: &Metadata) -> FileType {
    if target.is_dir() {
        FileType::FILE_TYPE_DIRECTORY
    } else if target.is_file() {
        FileType::FILE_TYPE_FILE
    } else {
        FileType::FILE_TYPE_UNSPECIFIED
    }
}

fn modified(own: &Metadata) -> Option<Timestamp> {
    let time = Timestamp {
        seconds: own.mtime(),
        nanos: i32::try_from(own.mtime_nsec()).unwrap_or_default(),
        ..Default::default()
    };
    (time.seconds != 0 || time.nanos != 0).then_some(time)
}

/// Returns the metadata of a file, following links. Empty if the file or the file system has none.
pub(crate) fn metadata_of(path: &Path) -> BTreeMap<String, String> {
    let Ok(names) = xattr::list_deref(path) else { return BTreeMap::new() };
    names
        .filter_map(|name| {
            let key = name.to_str()?.strip_prefix(METADATA_PREFIX)?.to_owned();
            let value = String::from_utf8(xattr::get_deref(path, &name).ok()??).ok()?;
            Some((key, value))
        })
        .collect()
}

/// Formats permissions as the contract does: letters for the file's type and special bits, then nine of `rwx`.
fn permissions(own: &Metadata) -> String {
    let kind = own.file_type();
    let mode = own.mode();
    let letters = [
        (kind.is_dir(), 'd'),
        (kind.is_symlink(), 'L'),
        (kind.is_block_device() || kind.is_char_device(), 'D'),
        (kind.is_fifo(), 'p'),
        (kind.is_socket(), 'S'),
        (mode & 0o4000 != 0, 'u'),
        (mode & 0o2000 != 0, 'g'),
        (kind.is_char_device(), 'c'),
        (mode & 0o1000 != 0, 't'),
    ];
    let mut text: String = letters.iter().filter(|(is, _)| *is).map(|(_, letter)| letter).collect();
    if text.is_empty() {
        text.push('-');
    }
    for shift in (0..9).rev() {
        let letter = ['x', 'w', 'r'][shift % 3];
        text.push(if mode >> shift & 1 == 1 { letter } else { '-' });
    }
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn permissions_as_in_the_contract() {
        let folder = tempfile::tempdir().expect("create a temporary directory");
        let path = folder.path().join("file");
        fs::write(&path, "x").expect("write");
        for (mode, text) in [(0o644, "-rw-r--r--"), (0o4755, "urwxr-xr-x"), (0o000, "----------")] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
            assert_eq!(permissions(&fs::metadata(&path).expect("exists")), text);
        }
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o1777)).expect("set");
        assert_eq!(permissions(&fs::metadata(folder.path()).expect("exists")), "dtrwxrwxrwx");
        let null = fs::metadata("/dev/null").expect("exists");
        assert!(permissions(&null).starts_with("Dcrw"));
    }

    #[test]
    fn a_link_is_described_itself_with_its_target_s_type() {
        let folder = tempfile::tempdir().expect("create a temporary directory");
        let (target, link, broken) =
            (folder.path().join("target"), folder.path().join("link"), folder.path().join("broken"));
        fs::create_dir(&target).expect("create");
        symlink(&target, &link).expect("link");
        symlink("/nonexistent", &broken).expect("link");
        let entry = describe(&link, &mut NameCache::default()).expect("exists");
        assert_eq!(entry.r#type, FileType::FILE_TYPE_DIRECTORY);
        assert_eq!(entry.symlink_target.as_deref(), fs::canonicalize(&target).expect("exists").to_str());
        assert_eq!(entry.permissions, "Lrwxrwxrwx");
        let entry = describe(&broken, &mut NameCache::default()).expect("exists");
        assert_eq!(entry.r#type, FileType::FILE_TYPE_UNSPECIFIED);
        assert_eq!((entry.mode, entry.symlink_target.as_deref()), (0, broken.to_str()));
    }

    /// Formats a mode as Go's `FileMode.String` does, for one type of file.
    ///
    /// The letter of the type stands in its place among those of the mode.
    fn go_style(kind: char, mode: u32) -> String {
        let is_set = |bit: u32| mode & bit != 0;
        let mut text = String::new();
        for letter in "dLDpSugct".chars() {
            let is = match letter {
                'u' => is_set(0o4000),
                'g' => is_set(0o2000),
                't' => is_set(0o1000),
                letter => letter == kind,
            };
            if is {
                text.push(letter);
            }
        }
        let kind = if text.is_empty() { "-" } else { &text };
        let three = ["---", "--x", "-w-", "-wx", "r--", "r-x", "rw-", "rwx"];
        let of = |shift: u32| three[(mode >> shift & 7) as usize];
        format!("{kind}{}{}{}", of(6), of(3), of(0))
    }

    #[test]
    fn permissions_of_every_mode_of_every_kind() {
        let folder = tempfile::tempdir().expect("create a temporary directory");
        let path = |name: &str| folder.path().join(name);
        fs::write(path("file"), "").expect("write");
        fs::create_dir(path("dir")).expect("create");
        rustix::fs::mknodat(rustix::fs::CWD, path("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0)
            .expect("create");
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).expect("bind");
        let mut seen = std::collections::HashSet::new();
        for (name, kind) in [("file", '-'), ("dir", 'd'), ("fifo", 'p'), ("socket", 'S')] {
            for mode in 0..=0o7777 {
                fs::set_permissions(path(name), fs::Permissions::from_mode(mode)).expect("set");
                let own = fs::symlink_metadata(path(name)).expect("exists");
                assert_eq!(own.mode() & 0o7777, mode, "{name}");
                let text = permissions(&own);
                assert_eq!(text, go_style(kind, mode), "{name} {mode:o}");
                assert!((10..=13).contains(&text.len()) && text.is_ascii(), "{text}");
                assert!(seen.insert(text), "{name} {mode:o} has the text of another mode");
            }
        }
        // Files that cannot be created, or whose mode cannot be set.
        symlink("nowhere", path("link")).expect("link");
        let link = fs::symlink_metadata(path("link")).expect("exists");
        assert_eq!(permissions(&link), go_style('L', 0o777));
        let null = fs::symlink_metadata("/dev/null").expect("exists");
        let letters = go_style('D', null.mode()).replacen('D', "Dc", 1);
        assert_eq!(permissions(&null), letters);
    }
}
