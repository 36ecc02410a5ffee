//! `hearth doctor`: checks every host requirement, and prints the effect of each missing one and its fix.

mod templates;

use std::path::Path;
use std::time::SystemTime;

use anyhow::Result;
use hearth_host::cgroup::Groups;
use hearth_host::requirement::{self, Finding, Need};
use hearth_host::{disk, process};
use hearth_sandbox::DiskSpace;
use serde_json::{Value, json};
use templates::TemplateStatus;

use crate::layout::Layout;
use crate::options::{NetworkMode, Settings};
use crate::tls::acme::CertificateStatus;

/// Recommended free disk space: kernel, root filesystem, a template with its memory, and room for sandboxes' changes.
const DISK_MIB: u64 = 4096;
/// Required memory: the daemon, one guest and its VMM.
const MEMORY_MIB: u64 = 1024;

/// Checks every requirement and prints the findings. Returns true if sandboxes can run.
pub(crate) async fn run(settings: &Settings, as_json: bool) -> Result<bool> {
    let templates = templates::read(settings, &Layout::new(&settings.data_dir));
    let findings = collect(settings, &templates).await;
    let can_run = findings.iter().all(|finding| finding.found || finding.need == Need::Recommended);
    if as_json {
        let findings: Vec<Value> = findings.iter().map(to_json).collect();
        let templates: Vec<Value> = templates.iter().map(TemplateStatus::to_json).collect();
        println!("{:#}", json!({ "sandboxes_can_run": can_run, "findings": findings, "templates": templates }));
    } else {
        for finding in &findings {
            print!("{}", to_text(finding));
        }
        println!("\n{}", if can_run { "Sandboxes can run here." } else { "Sandboxes cannot run here yet." });
    }
    Ok(can_run)
}

async fn collect(settings: &Settings, templates: &[TemplateStatus]) -> Vec<Finding> {
    let layout = Layout::new(&settings.data_dir);
    let mut findings = vec![qemu(settings).await, requirement::kvm(), accelerator(&layout)];
    findings.extend(network(settings));
    findings.extend([cgroups().await, memory(), disk_space(settings, &layout), data_directory(&layout)]);
    findings.extend(names(settings).await);
    findings.extend(certificate(settings, &layout));
    // The programs that build the base template are required until it exists.
    let has_base = templates.iter().any(|template| template.is_base() && template.is_ready());
    findings.extend(setup_programs(if has_base { Need::Recommended } else { Need::Required }));
    let now = jiff::Timestamp::now();
    findings.extend(templates.iter().map(|template| template.finding(now)));
    findings
}

async fn qemu(settings: &Settings) -> Finding {
    let program = process::find_program(settings.qemu.as_os_str()).unwrap_or_else(|| settings.qemu.clone());
    let version = hearth_vmm::qemu_version(&program).await;
    Finding {
        name: "QEMU",
        need: Need::Required,
        found: version.is_ok(),
        detail: match version {
            Ok(version) => format!("{} is version {version}", program.display()),
            Err(error) => error.to_string(),
        },
        cost: "no sandbox runs",
        fix: "install qemu-system-x86 7.2 or newer, or choose another program with --qemu",
    }
}

/// Accelerator that an earlier start chose by a test boot.
fn accelerator(layout: &Layout) -> Finding {
    let verdict = hearth_vmm::stored_verdict(&layout.verdict());
    Finding {
        name: "accelerator",
        need: Need::Recommended,
        found: true,
        detail: match verdict {
            Some(verdict) => format!("{}: {}", verdict.accelerator.name(), verdict.reason),
            None => "no test boot recorded: the next start decides by the check above".to_owned(),
        },
        cost: "",
        fix: "",
    }
}

fn network(settings: &Settings) -> Vec<Finding> {
    let may_use_namespaces = settings.network_mode != NetworkMode::User;
    let namespaces = requirement::network_namespaces();
    let need = match settings.network_mode {
        NetworkMode::Namespaces => Need::Required,
        NetworkMode::Auto if namespaces.found => Need::Required,
        NetworkMode::Auto | NetworkMode::User => Need::Recommended,
    };
    let cost = "no network namespaces for guests";
    let is_required = settings.network_mode == NetworkMode::Namespaces;
    let mut findings =
        vec![Finding { need: if is_required { Need::Required } else { Need::Recommended }, ..namespaces }];
    if may_use_namespaces {
        findings.push(requirement::program("ip", need, cost, "install the package iproute2"));
        findings.push(requirement::program("nft", need, cost, "install the package nftables"));
        findings.push(requirement::forwarding());
    }
    findings
}

/// Resolution of names below the domain; `None` if there is no domain.
async fn names(settings: &Settings) -> Option<Finding> {
    let domain = settings.domain_at(settings.tls_listen.port())?;
    let found = domain.resolves().await;
    let (host, local) = (domain.host(), domain.is_local());
    Some(Finding {
        name: "names",
        need: Need::Recommended,
        found,
        detail: match (found, local) {
            (true, true) => format!("names below {host} resolve to this machine"),
            (true, false) => format!("names below {host} resolve"),
            (false, true) => format!("names below {host} do not resolve to this machine"),
            (false, false) => format!("names below {host} do not resolve on this machine"),
        },
        cost: "SDKs can use addresses only (hearth env --by addresses): no signed URLs and no getHost()",
        fix: if local {
            "install the package libnss-myhostname, or use systemd-resolved (libnss-resolve)"
        } else {
            "add DNS records for the domain and *.domain that point to the address of --tls-listen"
        },
    })
}

/// Status of the ACME certificate; `None` without ACME.
fn certificate(settings: &Settings, layout: &Layout) -> Option<Finding> {
    let (acme, domain) = (settings.acme.as_ref()?, settings.domain.as_ref()?);
    let (found, text) = match CertificateStatus::read(acme, layout, domain) {
        Ok(status) => status.describe(SystemTime::now()),
        Err(error) => (false, format!("{error:#}")),
    };
    Some(Finding {
        name: "certificate",
        need: Need::Recommended,
        found,
        detail: format!("for {} and *.{} from {}: {text}", domain.host(), domain.host(), acme.directory),
        cost: "clients reject TLS connections to the domain: until then it uses a certificate of Hearth's own authority",
        fix: "start `hearth up`, which requests one; if that failed, fix the cause above and start it again",
    })
}

async fn cgroups() -> Finding {
    // Unique, because another `hearth doctor` may run at the same time.
    let groups = Groups::open(&format!("doctor-{}", std::process::id()));
    let found = match groups.create("probe") {
        Ok(Some(probe)) => {
            // An empty group can be removed; a failure is no finding about sandboxes.
            let _ = probe.remove().await;
            true
        }
        Ok(None) | Err(_) => false,
    };
    let finding = Finding {
        name: "control groups",
        need: Need::Recommended,
        found,
        detail: groups.support().to_owned(),
        cost: "the kernel does not group the processes of a sandbox, and no limit applies to them as a whole",
        fix: "run as root on a host with the unified hierarchy (systemd.unified_cgroup_hierarchy=1)",
    };
    groups.close();
    finding
}

fn memory() -> Finding {
    let mib = requirement::memory_mib().unwrap_or(0);
    Finding {
        name: "memory",
        need: Need::Required,
        found: mib >= MEMORY_MIB,
        detail: format!("{mib} MiB"),
        cost: "a guest and its VMM do not fit",
        fix: "use a host with at least 1 GiB of memory",
    }
}

fn disk_space(settings: &Settings, layout: &Layout) -> Finding {
    let existing = layout.root().ancestors().find(|path| path.exists()).unwrap_or(Path::new("/")).to_owned();
    let free_mib = disk::free_bytes(&existing).unwrap_or(0) >> 20;
    let disk_bytes = u64::from(hearth_builder::Recipe::base().resources().disk_mib) << 20;
    let room = DiskSpace::open(settings.disk(existing)).map_or(0, |room| room.fitting_sandboxes(disk_bytes));
    Finding {
        name: "disk space",
        need: Need::Recommended,
        found: free_mib >= DISK_MIB && room > 0,
        detail: format!("{free_mib} MiB free for {}, enough for {room} more sandboxes", layout.root().display()),
        cost: "the template may not fit, and a new sandbox is rejected if its share of the disk does not fit",
        fix: "free some space, choose another disk with --data-dir (4 GiB are enough to begin), or reserve less per \
              sandbox with --disk-overcommit",
    }
}

fn data_directory(layout: &Layout) -> Finding {
    let exposure = layout.exposure();
    Finding {
        name: "data directory",
        need: Need::Recommended,
        found: exposure.is_none(),
        detail: exposure.unwrap_or_else(|| format!("other users have no access to {}", layout.root().display())),
        cost: "other users of this host may list sandboxes or replace keys",
        fix: "start `hearth up`, which removes their access; if another user owns it, run Hearth as that user or use chown",
    }
}

fn setup_programs(need: Need) -> impl Iterator<Item = Finding> {
    let cost = "templates cannot be made, except from a bundle";
    [
        ("apt-get", "use a Debian or Ubuntu host, or a file that `hearth bundle` wrote on one"),
        ("dpkg-deb", "install the package dpkg"),
        ("mmdebstrap", "install the package mmdebstrap"),
        ("mkfs.ext4", "install the package e2fsprogs"),
    ]
    .into_iter()
    .map(move |(name, fix)| requirement::program(name, need, cost, fix))
}

fn to_json(finding: &Finding) -> Value {
    let Finding { name, need, found, detail, cost, fix } = finding;
    let need = match need {
        Need::Required => "required",
        Need::Recommended => "recommended",
    };
    json!({ "name": name, "need": need, "found": found, "detail": detail, "cost": cost, "fix": fix })
}

fn to_text(finding: &Finding) -> String {
    let Finding { name, need, found, detail, cost, fix } = finding;
    let mark = match (found, need) {
        (true, _) => "ok     ",
        (false, Need::Recommended) => "missing",
        (false, Need::Required) => "MISSING",
    };
    let mut text = format!("{mark}  {name}: {detail}\n");
    if !found {
        text.push_str(&format!("         effect: {cost}\n         fix: {fix}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_check_of_control_groups_leaves_none() {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("exists on Linux");
        let mounts =
            mounts.lines().filter(|line| line.contains(" - cgroup2 ")).filter_map(|line| line.split(' ').nth(4));
        for mount in mounts {
            cgroups().await;
            let path = Path::new(mount).join(format!("hearth-doctor-{}", std::process::id()));
            assert!(!path.exists(), "{}", path.display());
        }
    }

    #[test]
    fn a_missing_requirement_is_printed_with_effect_and_fix() {
        let finding = Finding {
            name: "tool",
            need: Need::Required,
            found: false,
            detail: "not found".to_owned(),
            cost: "no sandbox runs",
            fix: "install it",
        };
        let text = to_text(&finding);
        for part in ["MISSING  tool: not found", "effect: no sandbox runs", "fix: install it"] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(to_text(&Finding { found: true, ..finding.clone() }), "ok       tool: not found\n");
        assert_eq!(to_json(&finding)["need"], "required");
    }
}
