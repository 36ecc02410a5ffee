//! Hardware of a node and its usage.

/// A node's processor. Texts are those of Linux's `/proc/cpuinfo`; empty if the kernel does not report them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Decimal number.
    pub cpu_family: String,
    /// Decimal number within the family.
    pub cpu_model: String,
    /// The manufacturer's name for the processor.
    pub cpu_model_name: String,
    /// Instruction set: `x86_64`.
    pub cpu_architecture: String,
}

/// Usage of a machine, by all processes together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Load {
    /// Number of processors.
    pub cpu_count: u32,
    /// Average utilization of all processors together since the node's previous measurement, 0 to 100.
    pub cpu_percent: u32,
    pub memory_total_bytes: u64,
    /// Memory that is not available for new allocations.
    pub memory_used_bytes: u64,
    pub huge_pages: HugePages,
    /// File systems that store sandboxes.
    pub disks: Vec<Disk>,
}

/// Memory reserved as huge pages of the default size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HugePages {
    /// Number of pages.
    pub total: u64,
    /// Number of pages in use.
    pub used: u64,
    /// Number of pages that are promised but not in use yet.
    pub reserved: u64,
    /// Size of one page.
    pub page_bytes: u64,
}

/// A file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    pub mount_point: String,
    /// The mounted device.
    pub device: String,
    /// Such as `ext4`.
    pub filesystem_type: String,
    pub used_bytes: u64,
    /// Used and free bytes together.
    pub total_bytes: u64,
}
