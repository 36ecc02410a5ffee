//! Limits of connections and requests, derived from the process's limit of open files.
//!
//! Every connection takes a file descriptor, and a process may have a limited number of them (`RLIMIT_NOFILE`). Clients
//! and guests may use a part of that number; the daemon needs the rest for databases, virtual machines, namespaces, and
//! for stopping all of them.

/// Reserved for the daemon: listeners, databases, the runtime, files of API requests.
const DAEMON: u64 = 1024;
/// Reserved for each sandbox: sockets and process of its VM, its namespace, its disks and the connection to its daemon.
const EACH_SANDBOX: u64 = 16;
/// Descriptors of a request besides its client's connection.
///
/// Both ends of the connection to the node, and the connection to the guest.
const EACH_REQUEST: u64 = 3;
/// Maximum for each kind of connection; one process has no use for more.
const CONNECTIONS_MAX: u64 = 16 * 1024;
/// Maximum number of connections to the API; each client has a few.
const API_CONNECTIONS_MAX: u64 = 4096;
/// Maximum number of requests of one sandbox, whose daemon serves hundreds of streams.
const SANDBOX_REQUESTS_MAX: u64 = 1024;

/// Limits for the users of a process's file descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DescriptorBudget {
    /// Maximum number of connections to the API.
    pub api_connections: u32,
    /// Maximum number of connections of one listener for sandboxes, of which there are at most two.
    pub client_connections: u32,
    /// Maximum number of requests to sandboxes in flight, including upgraded streams.
    pub requests: usize,
    /// Maximum of these for all sandboxes of one team.
    pub team_requests: usize,
    /// Maximum of these for one sandbox.
    pub sandbox_requests: usize,
    /// Maximum number of idle connections to guests.
    pub idle_connections: usize,
}

impl DescriptorBudget {
    /// Splits `limit` descriptors on a node that runs up to `sandboxes_max` sandboxes.
    #[must_use]
    pub fn split(limit: u64, sandboxes_max: usize) -> Self {
        // With few descriptors, the reserve and the traffic get half of them each.
        let reserve = (DAEMON + EACH_SANDBOX * sandboxes_max as u64).min(limit / 2);
        let traffic = limit - reserve;
        let at_most = |max: u64, share: u64| max.min(share).max(1);
        // The shares are 13/16 together: two listeners, and three descriptors per request. The rest is for idle
        // connections between edge and node.
        let requests = at_most(CONNECTIONS_MAX, traffic / (8 * EACH_REQUEST / 3));
        let number = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        let connections = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        Self {
            api_connections: connections(at_most(API_CONNECTIONS_MAX, traffic / 16)),
            client_connections: connections(at_most(CONNECTIONS_MAX, traffic / 8)),
            requests: number(requests),
            team_requests: number(requests.div_ceil(2)),
            sandbox_requests: number(at_most(SANDBOX_REQUESTS_MAX, requests / 8)),
            idle_connections: number(at_most(CONNECTIONS_MAX, traffic / 8)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(budget: &DescriptorBudget) -> u64 {
        let DescriptorBudget { api_connections, client_connections, requests, idle_connections, .. } = *budget;
        u64::from(api_connections)
            + 2 * u64::from(client_connections)
            + EACH_REQUEST * requests as u64
            + idle_connections as u64
    }

    #[test]
    fn clients_and_guests_leave_a_reserve() {
        for (limit, sandboxes) in [(256, 1), (1024, 8), (4096, 500), (20_000, 94), (65_536, 500), (1 << 20, 1000)] {
            let budget = DescriptorBudget::split(limit, sandboxes);
            let reserve = (DAEMON + EACH_SANDBOX * sandboxes as u64).min(limit / 2);
            assert!(used(&budget) + reserve <= limit, "{limit}: {budget:?}");
            assert!(
                budget.sandbox_requests < budget.team_requests && budget.team_requests < budget.requests,
                "{budget:?}"
            );
        }
    }

    #[test]
    fn a_large_limit_is_capped() {
        let budget = DescriptorBudget::split(1 << 20, 100);
        assert_eq!((budget.client_connections, budget.requests, budget.sandbox_requests), (16_384, 16_384, 1024));
        assert_eq!((budget.api_connections, budget.team_requests), (4096, 8192));
    }
}
