//! Answers token by token: several prompts at a time, each with its own place in the key/value cache.

mod kv_cache;
mod sampler;

use std::sync::Arc;

use burn::tensor::{Int, Tensor, TensorData};
use justtrain_kernels::Segments;
use justtrain_worker_api::{GenerateOptions, GenerationEnd};

pub use kv_cache::KvCache;
pub(crate) use kv_cache::LayerCache;
use sampler::Sampler;

use crate::config::Seq2Seq;
use crate::{Decoder, Input, Mode};

/// One finished answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Without the token that ended it.
    pub ids: Vec<u32>,
    pub end: GenerationEnd,
}

/// Answers `prompts` (token ids, none empty), all at once. `on_token` sees each token of each prompt by index as it
/// is made and says whether that answer goes on.
///
/// `decoder` tracks no gradients. A prompt that fills the model's context is answered with nothing and
/// [`GenerationEnd::Length`]. With two stacks a prompt is what the encoder reads, once.
pub fn generate(
    decoder: &Decoder,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    stop_ids: &[u32],
    mode: Mode,
    mut on_token: impl FnMut(usize, u32) -> bool,
) -> Vec<Answer> {
    let seq2seq = decoder.config().seq2seq;
    // What each sequence of the decoder begins with.
    let begun: Vec<Vec<u32>> = match seq2seq {
        None => prompts.to_vec(),
        Some(Seq2Seq { start, .. }) => vec![vec![start]; prompts.len()],
    };
    let limits: Vec<usize> = begun.iter().map(|prompt| decoder.config().answer_limit(prompt.len())).collect();
    let longest = begun.iter().map(Vec::len).max().unwrap_or(0);
    let capacity = (longest + options.max_new_tokens as usize).min(decoder.config().max_positions);
    let mut answers: Vec<Answer> =
        prompts.iter().map(|_| Answer { ids: Vec::new(), end: GenerationEnd::Length }).collect();
    let mut active: Vec<usize> = (0..prompts.len()).filter(|&slot| begun[slot].len() < limits[slot]).collect();
    if options.max_new_tokens == 0 || active.is_empty() {
        return answers;
    }

    let mut samplers: Vec<Sampler> = (0..prompts.len()).map(|slot| Sampler::new(options, slot as u64)).collect();
    let mut cache = KvCache::new(decoder, prompts.len(), capacity);
    // The first pass reads whole prompts, each later one a token of every answer that goes on.
    let mut pending: Vec<Vec<u32>> = active.iter().map(|&slot| begun[slot].clone()).collect();
    let mut sources = seq2seq.map(|_| SourceRows::of(prompts));
    loop {
        let logits = next_logits(decoder, &mut cache, &active, &pending, sources.as_mut(), mode);
        let mut going_on = Vec::new();
        pending.clear();
        for (&slot, logits) in active.iter().zip(logits.chunks(decoder.config().vocab_size)) {
            let id = samplers[slot].pick(logits);
            let answer = &mut answers[slot];
            if stop_ids.contains(&id) || seq2seq.is_some_and(|stacks| stacks.end == id) {
                answer.end = GenerationEnd::Stop;
                continue;
            }
            answer.ids.push(id);
            if !on_token(slot, id) {
                answer.end = GenerationEnd::Cancelled;
                continue;
            }
            let used = begun[slot].len() + answer.ids.len();
            if answer.ids.len() < options.max_new_tokens as usize && used < limits[slot] {
                going_on.push(slot);
                pending.push(vec![id]);
            }
        }
        active = going_on;
        if active.is_empty() {
            return answers;
        }
    }
}

/// The sources of all slots, for a decoder that has an encoder.
struct SourceRows<'a> {
    /// Read in the first pass.
    unread: Option<&'a [Vec<u32>]>,
    starts: Vec<usize>,
}

impl<'a> SourceRows<'a> {
    fn of(prompts: &'a [Vec<u32>]) -> Self {
        let mut starts = vec![0];
        starts.extend(prompts.iter().scan(0, |end, prompt| {
            *end += prompt.len();
            Some(*end)
        }));
        Self { unread: Some(prompts), starts }
    }

    fn beside(&mut self, input: Input, active: &[usize]) -> Input {
        match self.unread.take() {
            Some(prompts) => input.with_sources(&prompts.concat(), &self.starts),
            None => input.with_sources_read(active.iter().map(|&slot| self.starts[slot]..self.starts[slot + 1])),
        }
    }
}

/// Runs the pending tokens of each active slot and returns the logits after the last of each, row by row.
fn next_logits(
    decoder: &Decoder,
    cache: &mut KvCache,
    active: &[usize],
    pending: &[Vec<u32>],
    sources: Option<&mut SourceRows<'_>>,
    mode: Mode,
) -> Vec<f32> {
    let mut positions = Vec::new();
    let mut pairs = Vec::new();
    let mut last_rows = Vec::new();
    for (&slot, ids) in active.iter().zip(pending) {
        let start = positions.len();
        let keys = cache.reserve(slot, ids.len());
        let seen = keys.len() - ids.len();
        positions.extend((seen..keys.len()).map(|position| position as u32));
        pairs.push((start..positions.len(), keys));
        last_rows.push(positions.len() as i64 - 1);
    }
    let segments = Arc::new(Segments::cached(pairs));
    let input = Input { ids: pending.concat(), positions, types: Vec::new(), patches: None, segments, sources: None };
    let input = match sources {
        None => input,
        Some(sources) => sources.beside(input, active),
    };
    let hidden = decoder.hidden_states(&input, Some(cache), mode);
    let rows = Tensor::<1, Int>::from_data(TensorData::new(last_rows, [active.len()]), &hidden.device());
    let logits = decoder.logits(hidden.select(0, rows), mode);
    logits.into_data().try_into_vec().expect("logits are f32")
}
