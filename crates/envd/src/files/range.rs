//! Byte ranges (RFC 9110, section 14).

/// Part of a file; never empty and always within the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) start: u64,
    pub(super) length: u64,
}

impl Part {
    /// Formats the value of `Content-Range`.
    pub(super) fn content_range(self, size: u64) -> String {
        format!("bytes {}-{}/{size}", self.start, self.start + self.length - 1)
    }
}

/// Parts of a file that a `Range` header selects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Selection {
    Whole,
    /// At least one part.
    Parts(Vec<Part>),
    Unsatisfiable,
}

/// Parses a header for a file of `size` bytes.
///
/// Ranges behind the end of the file are left out if others remain. An empty file is always sent whole, and so is one
/// whose parts together are larger than it: no real client requests that.
pub(super) fn parse(header: &str, size: u64) -> Selection {
    let Some(set) = header.trim().strip_prefix("bytes=") else { return Selection::Unsatisfiable };
    let mut parts = Vec::new();
    let mut total = 0u64;
    for range in set.split(',').map(str::trim).filter(|range| !range.is_empty()) {
        match part(range, size) {
            Err(Malformed) => return Selection::Unsatisfiable,
            Ok(None) => {}
            Ok(Some(part)) => {
                total = total.saturating_add(part.length);
                parts.push(part);
            }
        }
        // Also bounds the list: it has at most as many parts as the file has bytes.
        if total > size {
            return Selection::Whole;
        }
    }
    match (parts.is_empty(), size) {
        (true, 0) => Selection::Whole,
        (true, _) => Selection::Unsatisfiable,
        (false, _) => Selection::Parts(parts),
    }
}

struct Malformed;

/// Parses one range. Returns `None` if it is well-formed but behind the end of the file.
fn part(range: &str, size: u64) -> Result<Option<Part>, Malformed> {
    let (first, last) = range.split_once('-').ok_or(Malformed)?;
    let (start, end) = match (first.trim(), last.trim()) {
        ("", suffix) => (size.saturating_sub(number(suffix)?), u64::MAX),
        (first, "") => (number(first)?, u64::MAX),
        (first, last) => (number(first)?, number(last)?),
    };
    if start > end {
        return Err(Malformed);
    }
    let end = end.min(size.saturating_sub(1));
    Ok((start < size).then(|| Part { start, length: end - start + 1 }))
}

/// Parses digits; a number that is too large becomes `u64::MAX`, which is behind the end of every file.
fn number(text: &str) -> Result<u64, Malformed> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Malformed);
    }
    Ok(text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_as_in_the_rfc() {
        let parts = |parts: &[(u64, u64)]| {
            Selection::Parts(parts.iter().map(|(start, length)| Part { start: *start, length: *length }).collect())
        };
        for (header, expected) in [
            ("bytes=0-4", parts(&[(0, 5)])),
            ("bytes=5-", parts(&[(5, 5)])),
            ("bytes=-3", parts(&[(7, 3)])),
            ("bytes=-30", parts(&[(0, 10)])),
            ("bytes=8-100", parts(&[(8, 2)])),
            ("bytes=0-99999999999999999999999", parts(&[(0, 10)])),
            ("bytes=0-1, 3-4", parts(&[(0, 2), (3, 2)])),
            ("bytes=0-1,20-30", parts(&[(0, 2)])),
            ("bytes=0-8,0-8", Selection::Whole),
            ("bytes=10-", Selection::Unsatisfiable),
            ("bytes=20-30,40-", Selection::Unsatisfiable),
            ("bytes=4-3", Selection::Unsatisfiable),
            ("bytes=-0", Selection::Unsatisfiable),
            ("bytes=", Selection::Unsatisfiable),
            ("bytes=-", Selection::Unsatisfiable),
            ("bytes=+1-2", Selection::Unsatisfiable),
            ("lines=1-2", Selection::Unsatisfiable),
            ("bytes=a-b", Selection::Unsatisfiable),
            ("bytes=0-1,x", Selection::Unsatisfiable),
        ] {
            assert_eq!(parse(header, 10), expected, "{header}");
        }
        assert_eq!(parse("bytes=0-", 0), Selection::Whole);
        assert_eq!(Part { start: 2, length: 3 }.content_range(10), "bytes 2-4/10");
    }

    /// Models a header byte by byte: the positions of each range, or `None` if the header is malformed.
    fn model(header: &str, size: u64) -> Option<Vec<Vec<u64>>> {
        let mut asked = Vec::new();
        for range in header.strip_prefix("bytes=")?.split(',').filter(|range| !range.is_empty()) {
            let (first, last) = range.split_once('-')?;
            // Numbers beyond every file are equivalent.
            let number = |text: &str| text.parse::<u128>().ok().map(|number| number.min(u64::MAX.into()));
            let holds: Box<dyn Fn(u128) -> bool> = match (first.is_empty(), last.is_empty()) {
                (true, true) => return None,
                (true, false) => {
                    let length = number(last)?;
                    Box::new(move |at| at + length >= u128::from(size))
                }
                (false, true) => {
                    let first = number(first)?;
                    Box::new(move |at| at >= first)
                }
                (false, false) => {
                    let (first, last) = (number(first)?, number(last)?);
                    if first > last {
                        return None;
                    }
                    Box::new(move |at| (first..=last).contains(&at))
                }
            };
            asked.push((0..size).filter(|at| holds(u128::from(*at))).collect());
        }
        Some(asked)
    }

    fn expected(header: &str, size: u64) -> Selection {
        let Some(asked) = model(header, size) else { return Selection::Unsatisfiable };
        let asked: Vec<_> = asked.into_iter().filter(|positions| !positions.is_empty()).collect();
        match (asked.iter().map(Vec::len).sum::<usize>(), size) {
            (0, 0) => Selection::Whole,
            (0, _) => Selection::Unsatisfiable,
            (total, size) if total as u64 > size => Selection::Whole,
            _ => Selection::Parts(
                asked.iter().map(|positions| Part { start: positions[0], length: positions.len() as u64 }).collect(),
            ),
        }
    }

    proptest! {
        #[test]
        fn ranges_of_small_files_match_the_model(
            header in "bytes=(([0-9]|1[0-9]|99999999999999999999)?-([0-9]|1[0-9]|18446744073709551615)?,?){0,4}",
            size in 0u64..20,
        ) {
            let wanted = parse(&header, size);
            // Once more bytes are requested than the file has, it is sent whole and the remaining header is not parsed.
            let is_early = wanted == Selection::Whole && model(&header, size).is_none();
            prop_assert!(is_early || wanted == expected(&header, size), "{header} of {size}: {wanted:?}");
        }

        #[test]
        fn parts_are_within_the_file(header in "bytes=([0-9]{0,21}-[0-9]{0,21},?){1,4}", size in 0..=i64::MAX as u64) {
            if let Selection::Parts(parts) = parse(&header, size) {
                prop_assert!(!parts.is_empty());
                let mut total = 0u64;
                for part in parts {
                    prop_assert!(part.length > 0);
                    prop_assert!(part.start.checked_add(part.length).is_some_and(|end| end <= size));
                    total += part.length;
                }
                prop_assert!(total <= size);
            }
        }

        #[test]
        fn any_header_can_be_parsed(header in any::<String>(), size in any::<u64>()) {
            let is_bytes = header.trim().starts_with("bytes=");
            prop_assert!(is_bytes || parse(&header, size) == Selection::Unsatisfiable);
            let _ = parse(&format!("bytes={header}"), size);
        }
    }
}
