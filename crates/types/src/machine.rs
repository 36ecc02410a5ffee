//! The machine that a node is: what it has, and how much of it is in use.

/// What a machine's processors are, as Linux tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The family of the processor, a number.
    pub cpu_family: String,
    /// The model within the family, a number.
    pub cpu_model: String,
    /// What the processor's maker calls it.
    pub cpu_model_name: String,
    /// The instruction set: `x86_64`.
    pub cpu_architecture: String,
}

/// How much of a machine is in use, whoever uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Load {
    /// Processors.
    pub cpu_count: u32,
    /// How busy all of them together were of late, 0 to 100.
    pub cpu_percent: u32,
    /// Memory.
    pub memory_total_bytes: u64,
    /// Memory that is not available to whoever asks for some.
    pub memory_used_bytes: u64,
    /// Memory set aside as huge pages.
    pub huge_pages: HugePages,
    /// The file systems that sandboxes are kept on.
    pub disks: Vec<Disk>,
}

/// Memory set aside as huge pages of the usual size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HugePages {
    /// How many there are.
    pub total: u64,
    /// How many are in use.
    pub used: u64,
    /// How many are promised and not in use yet.
    pub reserved: u64,
    /// The size of one.
    pub page_bytes: u64,
}

/// A file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Where it is mounted.
    pub mount_point: String,
    /// What is mounted there.
    pub device: String,
    /// Its kind, such as `ext4`.
    pub filesystem_type: String,
    /// Bytes in use.
    pub used_bytes: u64,
    /// Bytes in use and free.
    pub total_bytes: u64,
}
