//! A real `hearth up` that requests the certificate of its domain from a real ACME issuer.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use hearth_testkit::{Instance, Issuer, PreparedDataDir, until};
use serde_json::Value;

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_hearth"))
}

/// Runs a command on this data directory with the options of the instance, and returns its output.
fn run(folder: &Path, command: &[&str], options: &[&str]) -> Result<String> {
    let output = Command::new(binary()).args(command).args(options).arg("--data-dir").arg(folder).output()?;
    ensure!(output.status.success(), "hearth {command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Returns true if OpenSSL, trusting this authority only, accepts the certificate for the name.
fn is_accepted(port: u16, authority: &Path, name: &str) -> Result<bool> {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-verify_return_error", "-connect", &format!("127.0.0.1:{port}")]);
    command
        .args(["-servername", name, "-verify_hostname", name, "-no-CAstore", "-no-CApath", "-CAfile"])
        .arg(authority);
    let output = command.stdin(Stdio::null()).output().context("starting openssl")?;
    Ok(output.status.success())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_issued_and_used_again_after_a_restart() -> Result<()> {
    let Some(mut issuer) = Issuer::start().await? else { return Ok(()) };
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let (domain, listen) = (format!("sandboxes.example.com:{port}"), format!("127.0.0.1:{port}"));
    let (directory, root, hook) = (issuer.directory(), issuer.root(), issuer.hook());
    let options = [
        ("--domain", domain.as_str()),
        ("--tls-listen", &listen),
        ("--acme-contact", "ada@example.com"),
        ("--acme-directory", &directory),
        ("--acme-root", root.to_str().context("a path")?),
        ("--acme-hook", hook.to_str().context("a path")?),
        ("--acme-wait", "0"),
    ]
    .map(|(option, value)| [option, value])
    .concat();
    let authority = root.with_file_name("authority.pem");
    fs::write(&authority, issuer.authority().await?)?;

    let instance = Instance::start(&PreparedDataDir::ensure(binary())?, &options).await?;
    let name = "api.sandboxes.example.com";
    until("the issuer's certificate", || async { Ok(is_accepted(port, &authority, name)?.then_some(())) }).await?;
    assert!(is_accepted(port, &authority, "49983-i1.sandboxes.example.com")?);
    assert!(!is_accepted(port, &authority, "example.com")?);

    // Clients need no certificate file to trust it.
    let folder = instance.folder().to_owned();
    let exports = run(&folder, &["env", "--by", "names"], &options)?;
    assert!(exports.contains(&format!("E2B_DOMAIN={domain}")) && !exports.contains("CERT"), "{exports}");
    let rejected = run(&folder, &["tls", "export"], &options).expect_err("there is no authority to export");
    assert!(rejected.to_string().contains("no certificate authority of its own"), "{rejected}");
    let config = folder.join("instance.toml");
    fs::write(&config, run(&folder, &["config"], &options)?)?;
    let doctor = Command::new(binary()).args(["doctor", "--json", "--config"]).arg(&config).output()?;
    let doctor: Value = serde_json::from_slice(&doctor.stdout)?;
    let findings = doctor["findings"].as_array().context("findings")?;
    let finding = findings.iter().find(|finding| finding["name"] == "certificate").context("a finding")?;
    let detail = finding["detail"].as_str().context("a detail")?;
    assert!(finding["found"] == true && detail.contains(&directory) && detail.contains(": valid until 2"), "{finding}");
    assert_eq!(issuer.hook_calls().len(), 4, "{:?}", issuer.hook_calls());

    // The next start does not contact the issuer.
    issuer.stop();
    let (status, folder) = instance.terminate().await?;
    ensure!(status.success(), "hearth failed: {status}");
    let instance = Instance::start_in(binary(), folder, &options).await?;
    assert!(is_accepted(port, &authority, name)?);
    assert!(!instance.log().contains("WARN"), "{}", instance.log());
    let (status, _) = instance.terminate().await?;
    ensure!(status.success(), "hearth failed: {status}");
    Ok(())
}
