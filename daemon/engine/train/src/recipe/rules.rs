//! What the schema cannot say: keys that do not go together, and numbers that mean two things.

use justtrain_model::families;
use justtrain_worker_api::{DevicePick, Problem, ProblemCode};
