//! Two upgraded connections become one stream.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional_with_sizes;

/// Bytes held for each direction. Enough for a full read of a socket's usual burst, little enough for thousands of streams.
const BUFFER_BYTES: usize = 16 << 10;

/// Copies both ways until both have ended. An end of one direction is passed on, and the other goes on. A failure of either side
/// ends both. Cancelling it closes both.
pub(super) async fn both_ways(client: OnUpgrade, upstream: OnUpgrade) {
    let (client, upstream) = match tokio::try_join!(client, upstream) {
        Ok(both) => both,
        Err(error) => {
            tracing::debug!(error = %hearth_stdx::chain(&error), "an upgrade was not completed");
            return;
        }
    };
    let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
    let copied = copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER_BYTES, BUFFER_BYTES).await;
    if let Err(error) = copied {
        tracing::debug!(%error, "an upgraded stream ended");
    }
}
