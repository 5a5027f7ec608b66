//! Learning one thing after the other without losing the first: what stages do about it, and how much was lost.
//!
//! | file | holds |
//! |---|---|
//! | `ewc.rs` | a pull back to what earlier stages have left, where it mattered to them |
//! | `lwf.rs` | what the model said before of the rows that are new |
//! | `olora.rs` | a pair for each stage, orthogonal to those before |
//! | `replay.rs` | rows of earlier stages among those of the next |
//! | `report.rs` | every stage's held-out rows after every stage |

mod ewc;
mod lwf;
mod olora;
mod replay;
mod report;

pub use ewc::Ewc;
pub(crate) use ewc::{FISHER, Pass, remember};
pub use lwf::Lwf;
pub use olora::OLora;
pub(crate) use replay::reservoir;
pub use report::ForgettingReport;
pub(crate) use report::{read_scores, write_report, write_scores};
