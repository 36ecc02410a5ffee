//! The manifest of an artifact set.

use hearth_types::{BuildId, Platform, Resources, TemplateId};
use serde::{Deserialize, Serialize};

/// Version of the manifest's format; a reader rejects all others.
const FORMAT: u32 = 1;

/// Description of an artifact set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    pub build_id: BuildId,
    pub template_id: TemplateId,
    /// Hash over all inputs of the build. A build with an equal key need not be repeated.
    pub content_key: String,
    /// Virtual hardware at the time of the snapshot, and of every restore.
    pub resources: Resources,
    /// Platform on which the snapshot can be restored.
    pub platform: Platform,
    /// Release of the guest kernel, as `uname -r` prints it.
    pub kernel_version: String,
    pub envd_version: String,
    /// Time of the snapshot.
    pub created_at: jiff::Timestamp,
}

/// Failure to read a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not valid JSON, or not the expected fields.
    #[error("the manifest cannot be read")]
    Syntax(#[source] serde_json::Error),
    /// Written by another version of Hearth.
    #[error("the manifest has format {found}, this version reads format {FORMAT}")]
    Format { found: u32 },
    /// A field has an invalid value.
    #[error("the manifest's {field} is invalid: {text}")]
    Field { field: &'static str, text: String },
}

/// JSON form of a manifest. Only this module uses it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ManifestFile {
    format: u32,
    build_id: String,
    template_id: String,
    content_key: String,
    vcpus: u32,
    memory_mib: u32,
    disk_mib: u32,
    driver: String,
    vmm_version: String,
    machine: String,
    cpu_model: String,
    accelerator: String,
    nic: String,
    kernel_version: String,
    envd_version: String,
    created_at: String,
}

/// Read first, so that another format is reported as [`ManifestError::Format`] and not as a syntax error.
#[derive(Deserialize)]
struct FormatHeader {
    format: u32,
}

impl Manifest {
    pub(crate) fn to_json(&self) -> Vec<u8> {
        let Self { build_id, template_id, content_key, resources, platform, kernel_version, envd_version, created_at } =
            self.clone();
        let Resources { vcpus, memory_mib, disk_mib } = resources;
        let Platform { driver, vmm_version, machine, cpu_model, accelerator, nic } = platform;
        let file = ManifestFile {
            format: FORMAT,
            build_id: build_id.to_string(),
            template_id: template_id.to_string(),
            content_key,
            vcpus,
            memory_mib,
            disk_mib,
            driver,
            vmm_version,
            machine,
            cpu_model,
            accelerator,
            nic,
            kernel_version,
            envd_version,
            created_at: created_at.to_string(),
        };
        serde_json::to_vec_pretty(&file).expect("strings and numbers can be serialized")
    }

    pub(crate) fn from_json(json: &[u8]) -> Result<Self, ManifestError> {
        let header: FormatHeader = serde_json::from_slice(json).map_err(ManifestError::Syntax)?;
        if header.format != FORMAT {
            return Err(ManifestError::Format { found: header.format });
        }
        let file: ManifestFile = serde_json::from_slice(json).map_err(ManifestError::Syntax)?;
        let field = |field: &'static str, text: &str| ManifestError::Field { field, text: text.to_owned() };
        Ok(Self {
            build_id: file.build_id.parse().map_err(|_| field("build_id", &file.build_id))?,
            template_id: file.template_id.parse().map_err(|_| field("template_id", &file.template_id))?,
            content_key: file.content_key,
            resources: Resources { vcpus: file.vcpus, memory_mib: file.memory_mib, disk_mib: file.disk_mib },
            platform: Platform {
                driver: file.driver,
                vmm_version: file.vmm_version,
                machine: file.machine,
                cpu_model: file.cpu_model,
                accelerator: file.accelerator,
                nic: file.nic,
            },
            kernel_version: file.kernel_version,
            envd_version: file.envd_version,
            created_at: file.created_at.parse().map_err(|_| field("created_at", &file.created_at))?,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn manifest() -> Manifest {
        Manifest {
            build_id: BuildId::generate(),
            template_id: TemplateId::generate(),
            content_key: "abc".to_owned(),
            resources: Resources { vcpus: 2, memory_mib: 512, disk_mib: 4096 },
            platform: Platform {
                driver: "qemu".to_owned(),
                vmm_version: "7.2.22".to_owned(),
                machine: "microvm/1".to_owned(),
                cpu_model: "max".to_owned(),
                accelerator: "tcg".to_owned(),
                nic: "tap".to_owned(),
            },
            kernel_version: "6.1.0".to_owned(),
            envd_version: "0.6.13".to_owned(),
            created_at: "2026-01-02T03:04:05.678Z".parse().expect("valid"),
        }
    }

    #[test]
    fn a_manifest_is_read_back_from_its_json() {
        let manifest = manifest();
        assert_eq!(Manifest::from_json(&manifest.to_json()).expect("reads"), manifest);
    }

    #[test]
    fn other_formats_and_unknown_fields_are_rejected() {
        let text = String::from_utf8(manifest().to_json()).expect("JSON");
        let newer = text.replace("\"format\": 1", "\"format\": 2");
        assert!(matches!(Manifest::from_json(newer.as_bytes()), Err(ManifestError::Format { found: 2 })));
        let odd = text.replace("\"vcpus\"", "\"cpus\"");
        assert!(matches!(Manifest::from_json(odd.as_bytes()), Err(ManifestError::Syntax(_))));
        assert!(Manifest::from_json(b"{").is_err());
    }
}
