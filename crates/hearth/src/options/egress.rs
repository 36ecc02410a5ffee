//! Destinations that the operator denies to guests.

use anyhow::{Result, anyhow, bail};
use ipnet::Ipv4Net;

/// Maximum number of ranges. A longer list, such as a published blocklist, belongs in a firewall that reloads it.
const DENIED_MAX: usize = 1024;

/// Parses the ranges of `--egress-deny`; a single address is a range of one.
pub(super) fn denied(options: &[String]) -> Result<Vec<Ipv4Net>> {
    if options.len() > DENIED_MAX {
        bail!("--egress-deny has {} ranges: give at most {DENIED_MAX}", options.len());
    }
    options.iter().map(|text| range(text.trim())).collect()
}

fn range(text: &str) -> Result<Ipv4Net> {
    let parsed = text.parse::<Ipv4Net>().ok().or_else(|| Some(Ipv4Net::from(text.parse::<std::net::Ipv4Addr>().ok()?)));
    let range = parsed.ok_or_else(|| {
        anyhow!("--egress-deny {text}: give an IPv4 range such as 203.0.113.0/24; guests have no IPv6")
    })?;
    Ok(range.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_single_addresses_are_parsed() {
        let texts = ["203.0.113.7/24", " 198.51.100.1", "0.0.0.0/0"].map(str::to_owned);
        let ranges: Vec<String> = denied(&texts).expect("valid").iter().map(Ipv4Net::to_string).collect();
        assert_eq!(ranges, ["203.0.113.0/24", "198.51.100.1/32", "0.0.0.0/0"]);
        for text in ["", "example.com", "fd00::/8", "10.0.0.0/33", "10.0.0.0/8; flush ruleset"] {
            let error = denied(&[text.to_owned()]).expect_err("invalid").to_string();
            assert!(error.contains("--egress-deny") && error.contains("203.0.113.0/24"), "{error}");
        }
        assert!(denied(&vec!["10.0.0.1".to_owned(); DENIED_MAX + 1]).is_err());
    }
}
