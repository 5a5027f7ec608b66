//! The contract between client and daemon, in `proto/justtrain/v1`, and the types made from it.

/// Package `justtrain.v1`.
#[allow(clippy::all, clippy::pedantic, unreachable_pub, missing_docs)]
pub mod v1 {
    tonic::include_proto!("justtrain.v1");
}

/// The metadata key that carries the bearer token: `authorization: Bearer <token>`.
pub const AUTHORIZATION: &str = "authorization";

/// Address used when `JUSTTRAIN_ADDR` is not set.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:7707";

/// The type URL under which [`v1::Problems`] travels in the details of a failed call's status.
pub const PROBLEMS_TYPE_URL: &str = "type.googleapis.com/justtrain.v1.Problems";
