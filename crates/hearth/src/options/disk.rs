//! Options for sharing the disk among sandboxes.

use std::path::PathBuf;

use anyhow::{Result, bail};
use hearth_sandbox::DiskConfig;

use super::Settings;

/// Default reserve.
///
/// The database and logs of a busy instance grow by some MiB an hour, and a guest writes less than this between two
/// checks of the free space.
const RESERVE_MIB: u64 = 1024;
/// With less, the disk may be full for the daemon's database before sandboxes are paused.
const RESERVE_MIB_MIN: u64 = 64;
/// Default ratio: the base template's disk has 8 GiB, and few sandboxes ever write 2.
const OVERCOMMIT: u32 = 4;
/// At this ratio, the share of the base template's disk is 128 MiB, enough to install a package.
const OVERCOMMIT_MAX: u32 = 64;

/// Validated disk options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sharing {
    pub(super) reserve_mib: u64,
    pub(super) overcommit: u32,
}

impl Sharing {
    pub(super) fn from_options(reserve_mib: Option<u64>, overcommit: Option<u32>) -> Result<Self> {
        let reserve_mib = reserve_mib.unwrap_or(RESERVE_MIB);
        if !(RESERVE_MIB_MIN..=u64::from(u32::MAX)).contains(&reserve_mib) {
            bail!("--disk-reserve-mib {reserve_mib}: choose {RESERVE_MIB_MIN} or more");
        }
        let overcommit = overcommit.unwrap_or(OVERCOMMIT);
        if !(1..=OVERCOMMIT_MAX).contains(&overcommit) {
            bail!("--disk-overcommit {overcommit}: choose 1 to {OVERCOMMIT_MAX}");
        }
        Ok(Self { reserve_mib, overcommit })
    }
}

impl Settings {
    /// Disk configuration for sandboxes in `folder`.
    pub(crate) fn disk(&self, folder: PathBuf) -> DiskConfig {
        let Sharing { reserve_mib, overcommit } = self.disk;
        DiskConfig { folder, reserve_bytes: reserve_mib << 20, overcommit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_for_out_of_range_values_name_the_range() {
        assert_eq!(Sharing::from_options(None, None).expect("valid"), Sharing { reserve_mib: 1024, overcommit: 4 });
        for (reserve_mib, overcommit, part) in [(Some(1), None, "64 or more"), (None, Some(0), "1 to 64")] {
            let error = Sharing::from_options(reserve_mib, overcommit).expect_err("out of range").to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
