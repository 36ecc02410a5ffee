//! Joining of two upgraded connections into one stream.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional_with_sizes;

/// Buffer size per direction. Enough for a full read of a socket's usual burst, small enough for thousands of streams.
const BUFFER_BYTES: usize = 16 << 10;

/// Copies in both directions until both have ended.
///
/// The end of one direction is passed on, and the other direction continues. A failure of either side closes both.
/// Cancelling it closes both.
pub(super) async fn both_ways(client: OnUpgrade, upstream: OnUpgrade) {
    let (client, upstream) = match tokio::try_join!(client, upstream) {
        Ok(both) => both,
        Err(error) => {
            tracing::debug!(error = %hearth_stdx::chain(&error), "upgrade failed");
            return;
        }
    };
    let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
    let copied = copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER_BYTES, BUFFER_BYTES).await;
    if let Err(error) = copied {
        tracing::debug!(%error, "upgraded stream failed");
    }
}
