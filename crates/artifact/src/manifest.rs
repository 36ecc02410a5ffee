//! What an artifact set is: the manifest beside its files.

use hearth_types::{BuildId, Platform, Resources, TemplateId};
use serde::{Deserialize, Serialize};

/// Version of the manifest's form; a reader refuses others.
const FORMAT: u32 = 1;

/// Describes an artifact set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The build that owns the set.
    pub build_id: BuildId,
    /// The template it is a build of.
    pub template_id: TemplateId,
    /// What went into the build, as one hash: an equal one need not be built again.
    pub content_key: String,
    /// Virtual hardware at the time of the snapshot, so of every restore.
    pub resources: Resources,
    /// Where the snapshot can be restored.
    pub platform: Platform,
    /// Version of the guest kernel.
    pub kernel_version: String,
    /// Version of the guest daemon.
    pub envd_version: String,
    /// When the snapshot was taken.
    pub created_at: jiff::Timestamp,
}

/// Why a text is not a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not the JSON that was expected.
    #[error("the manifest cannot be read")]
    Syntax(#[source] serde_json::Error),
    /// Written by another version of Hearth.
    #[error("the manifest has format {found}, this version reads format {FORMAT}")]
    Format {
        /// The manifest's format.
        found: u32,
    },
    /// A field has no valid value.
    #[error("the manifest's {field} is invalid: {text}")]
    Field {
        /// The field.
        field: &'static str,
        /// Its text.
        text: String,
    },
}

/// The JSON form. Only this module sees it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
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

/// Read first, so that a manifest of another format is called that and not a syntax error.
#[derive(Deserialize)]
struct Header {
    format: u32,
}

impl Manifest {
    pub(crate) fn to_json(&self) -> Vec<u8> {
        let Self { build_id, template_id, content_key, resources, platform, kernel_version, envd_version, created_at } =
            self.clone();
        let Resources { vcpus, memory_mib, disk_mib } = resources;
        let Platform { driver, vmm_version, machine, cpu_model, accelerator, nic } = platform;
        let form = Form {
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
        serde_json::to_vec_pretty(&form).expect("a struct of texts and numbers has a JSON form")
    }

    pub(crate) fn from_json(json: &[u8]) -> Result<Self, ManifestError> {
        let header: Header = serde_json::from_slice(json).map_err(ManifestError::Syntax)?;
        if header.format != FORMAT {
            return Err(ManifestError::Format { found: header.format });
        }
        let form: Form = serde_json::from_slice(json).map_err(ManifestError::Syntax)?;
        let field = |field: &'static str, text: &str| ManifestError::Field { field, text: text.to_owned() };
        Ok(Self {
            build_id: form.build_id.parse().map_err(|_| field("build_id", &form.build_id))?,
            template_id: form.template_id.parse().map_err(|_| field("template_id", &form.template_id))?,
            content_key: form.content_key,
            resources: Resources { vcpus: form.vcpus, memory_mib: form.memory_mib, disk_mib: form.disk_mib },
            platform: Platform {
                driver: form.driver,
                vmm_version: form.vmm_version,
                machine: form.machine,
                cpu_model: form.cpu_model,
                accelerator: form.accelerator,
                nic: form.nic,
            },
            kernel_version: form.kernel_version,
            envd_version: form.envd_version,
            created_at: form.created_at.parse().map_err(|_| field("created_at", &form.created_at))?,
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
    fn a_manifest_survives_its_json() {
        let manifest = manifest();
        assert_eq!(Manifest::from_json(&manifest.to_json()).expect("own form"), manifest);
    }

    #[test]
    fn other_formats_and_unknown_fields_are_refused() {
        let text = String::from_utf8(manifest().to_json()).expect("JSON");
        let newer = text.replace("\"format\": 1", "\"format\": 2");
        assert!(matches!(Manifest::from_json(newer.as_bytes()), Err(ManifestError::Format { found: 2 })));
        let odd = text.replace("\"vcpus\"", "\"cpus\"");
        assert!(matches!(Manifest::from_json(odd.as_bytes()), Err(ManifestError::Syntax(_))));
        assert!(Manifest::from_json(b"{").is_err());
    }
}
