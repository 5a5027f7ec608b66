//! How long a lost connection is tried again.

use std::time::Duration;

/// Waits that double up to a longest one; after `limit` of them in a row without success we give up.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    limit: u32,
    failures: u32,
}

impl Backoff {
    /// About a minute: long enough for a daemon to be restarted.
    pub(crate) fn standard() -> Self {
        Self::new(Duration::from_millis(200), Duration::from_secs(5), 16)
    }

    pub(crate) fn new(first: Duration, longest: Duration, limit: u32) -> Self {
        Self { first, longest, limit, failures: 0 }
    }

    /// Something arrived: the next failure is the first again.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Counts one failure. True after having waited; false when it is time to give up.
    pub(crate) async fn wait(&mut self) -> bool {
        if self.failures >= self.limit {
            return false;
        }
        let wait = self.first.saturating_mul(1 << self.failures.min(16)).min(self.longest);
        self.failures += 1;
        tokio::time::sleep(wait).await;
        true
    }
}
