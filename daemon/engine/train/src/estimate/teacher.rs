//! What a teacher takes beside the model that learns from it.

use justtrain_model::DecoderConfig;
use justtrain_worker_api::MemoryEstimate;

use super::activations::{at_work_in_forward, with_gaps};
use super::memory::{FLOAT, frozen_weights};
use super::shape::Shape;
use super::work::Work;
use crate::objectives::LOGITS_BYTES;
use crate::recipe::Recipe;

/// Logits of a chunk: both models', their logarithms and probabilities, and the slopes.
const CHUNKS: u64 = 7;

pub(super) struct Teacher {
    pub(super) config: DecoderConfig,
    /// Of its file, where it is one file.
    pub(super) bytes: u64,
}

impl Teacher {
    /// Its weights are there from the first step to the last; it reads each batch before the model's backward begins.
    pub(super) fn beside(&self, peak: MemoryEstimate, recipe: &Recipe, shape: &Shape, work: &Work) -> MemoryEstimate {
        let own = Shape::new(&self.config, &recipe.frozen());
        let weights = peak.weights + frozen_weights(recipe, &own, self.bytes);
        MemoryEstimate { weights, ..reading(peak, &own, shape, work) }
    }
}

/// What the model of before the stage takes in a pass, beside its weights.
pub(super) fn before(peak: MemoryEstimate, shape: &Shape, work: &Work) -> MemoryEstimate {
    reading(peak, shape, shape, work)
}

/// `own` reads each batch, and what it says is compared with what the model says.
fn reading(peak: MemoryEstimate, own: &Shape, shape: &Shape, work: &Work) -> MemoryEstimate {
    let row = own.vocabulary.max(shape.vocabulary) as u64 * FLOAT;
    let rows = (LOGITS_BYTES as u64 / row).clamp(1, work.largest.targets.max(1) as u64);
    // A trained output layer has its gradient of one chunk, the sum of all, and the graph that hands it on.
    let tables = if shape.trained.output { 3 * shape.table_bytes() } else { 0 };
    MemoryEstimate {
        activations: peak.activations + with_gaps(at_work_in_forward(own, work.largest.tokens)),
        output_layer: peak.output_layer + CHUNKS * rows * row + tables,
        ..peak
    }
}
