//! How the descriptors that a process may have are shared out.
//!
//! Every connection is a descriptor, and a process has a limited number of them (`RLIMIT_NOFILE`). Whatever clients and guests may
//! make of them is bounded by a part of that number, so that the daemon keeps a reserve for what it does itself: databases,
//! machines, namespaces, and ending all of them.

/// The daemon's own: listeners, databases, the runtime, files of requests to the API.
const DAEMON: u64 = 1024;
/// For each sandbox: its machine's sockets and process, its namespace and disks, the connection to its daemon.
const EACH_SANDBOX: u64 = 16;
/// DescriptorBudget of a request besides its client's connection: both ends of the way to the node, and the way to the guest.
const EACH_REQUEST: u64 = 3;
/// More connections than this are of no use to one process.
const CONNECTIONS_MAX: u64 = 16 * 1024;
/// Connections of API clients, each of which has a few.
const API_CONNECTIONS_MAX: u64 = 4096;
/// Most requests of one sandbox, whose daemon serves hundreds of streams.
const SANDBOX_REQUESTS_MAX: u64 = 1024;

/// What of a process's descriptors may be used for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DescriptorBudget {
    /// Connections to the API.
    pub api_connections: u32,
    /// Connections of one listener for sandboxes, of which there are two at most.
    pub client_connections: u32,
    /// Requests to sandboxes that are under way, upgraded streams among them.
    pub requests: usize,
    /// Of these, requests to all sandboxes of one team.
    pub team_requests: usize,
    /// Of these, requests to one sandbox.
    pub sandbox_requests: usize,
    /// Idle connections to guests.
    pub idle_connections: usize,
}

impl DescriptorBudget {
    /// Shares out `limit` descriptors, on a node that runs so many sandboxes.
    #[must_use]
    pub fn split(limit: u64, sandboxes_max: usize) -> Self {
        // What is left when there are few is little for everything.
        let reserve = (DAEMON + EACH_SANDBOX * sandboxes_max as u64).min(limit / 2);
        let traffic = limit - reserve;
        let at_most = |max: u64, share: u64| max.min(share).max(1);
        // Together 13/16: two listeners, three for each request; the rest is for connections between edge and node that are idle.
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
    fn a_large_limit_is_not_used_up() {
        let budget = DescriptorBudget::split(1 << 20, 100);
        assert_eq!((budget.client_connections, budget.requests, budget.sandbox_requests), (16_384, 16_384, 1024));
        assert_eq!((budget.api_connections, budget.team_requests), (4096, 8192));
    }
}
