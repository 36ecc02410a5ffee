//! `POST /collapse`: merges the daemon's heap into pages of 2 MiB, so that a snapshot of it has fewer pieces.
//!
//! Only whole, aligned pieces of anonymous memory can be merged (`MADV_COLLAPSE`, madvise(2)). The daemon is small;
//! usually it has none.

use std::fs;
use std::ops::Range;
use std::time::Instant;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::header;
use serde::Serialize;

use crate::failure::Failure;
use crate::sys;

/// Size of a huge page, in bytes.
const HUGE_PAGE: usize = 2 << 20;

/// Counters of one collapse; the names are the contract's.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct CollapseReport {
    regions: usize,
    chunks: usize,
    collapsed: usize,
    already_huge: usize,
    skipped: usize,
    elapsed_ms: u64,
}

pub(crate) async fn collapse() -> Result<Response, Failure> {
    let done = tokio::task::spawn_blocking(collapse_all).await;
    let done = done.map_err(|error| Failure::internal(format!("merging pages: {error}")))?;
    let done = done.map_err(|error| Failure::internal(format!("reading the memory map: {error}")))?;
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(done)).into_response())
}

fn collapse_all() -> std::io::Result<CollapseReport> {
    let since = Instant::now();
    let maps = fs::read_to_string("/proc/self/maps")?;
    let mut done = CollapseReport::default();
    for region in maps.lines().filter_map(anonymous) {
        done.regions += 1;
        for chunk in chunks(&region) {
            done.chunks += 1;
            // Memory that was never touched, or that cannot be merged now, is left unchanged.
            match sys::collapse(chunk, HUGE_PAGE) {
                Ok(()) => done.collapsed += 1,
                Err(_) => done.skipped += 1,
            }
        }
    }
    done.elapsed_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(done)
}

/// Returns the region of a line of maps (proc_pid_maps(5)) if it is writable, private memory without a file.
fn anonymous(line: &str) -> Option<Range<usize>> {
    let mut fields = line.split_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let permissions = fields.next()?;
    let inode = fields.nth(2)?;
    let name = fields.next().unwrap_or("[heap]");
    if !permissions.starts_with("rw") || !permissions.ends_with('p') || inode != "0" || name != "[heap]" {
        return None;
    }
    Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
}

/// Returns the start addresses of the whole huge pages in a region.
fn chunks(region: &Range<usize>) -> impl Iterator<Item = usize> + use<> {
    let first = region.start.next_multiple_of(HUGE_PAGE);
    let last = region.end;
    (first..).step_by(HUGE_PAGE).take_while(move |start| start.checked_add(HUGE_PAGE).is_some_and(|end| end <= last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_pages_of_anonymous_memory() {
        let heap = anonymous("7f0000100000-7f0000900000 rw-p 00000000 00:00 0 ").expect("anonymous");
        assert_eq!(chunks(&heap).collect::<Vec<_>>(), [0x7f00_0020_0000, 0x7f00_0040_0000, 0x7f00_0060_0000]);
        assert!(anonymous("55d0c8b5e000-55d0c8b7f000 rw-p 00000000 00:00 0                          [heap]").is_some());
        for other in [
            "7ffc0000-7ffd0000 rw-p 00000000 00:00 0 [stack]",
            "7f0000100000-7f0000900000 r-xp 00000000 08:01 12 /usr/bin/envd",
            "7f0000100000-7f0000900000 rw-s 00000000 00:01 7 /memfd:x",
            "",
        ] {
            assert_eq!(anonymous(other), None, "{other}");
        }
        assert_eq!(chunks(&(0..HUGE_PAGE - 1)).count(), 0);
    }

    #[test]
    fn this_process_can_be_collapsed() {
        let done = collapse_all().expect("readable");
        assert!(done.regions > 0);
        assert_eq!(done.chunks, done.collapsed + done.skipped);
    }
}
