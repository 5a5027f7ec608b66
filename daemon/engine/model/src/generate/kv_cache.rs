//! Keys and values of the tokens that were read, so that each is computed once.

use std::ops::Range;

use burn::tensor::Tensor;
use justtrain_kernels::write_rows;

use crate::Decoder;
use crate::config::Stack;

/// Keys and values.
type Store = Option<(Tensor<2>, Tensor<2>)>;

/// A fixed number of slots, one sequence each, in every layer.
#[derive(Debug)]
pub struct KvCache {
    /// Keys and values of each layer, `[slots · capacity, key/value heads · dim]`.
    layers: Vec<Store>,
    /// Of two stacks: those of the sources, in each of the decoder's layers.
    sources: Vec<Store>,
    /// Tokens in each slot.
    lengths: Vec<usize>,
    capacity: usize,
    /// Rows that the pass under way writes.
    rows: Vec<usize>,
    pass_started: bool,
}

impl KvCache {
    /// `capacity` is the longest sequence of a slot, in tokens.
    pub fn new(decoder: &Decoder, slots: usize, capacity: usize) -> Self {
        let config = decoder.config();
        let shape = [slots * capacity, config.heads.key_value * config.heads.dim];
        let store = || Tensor::zeros(shape, &decoder.device());
        let of_layer = |layer| (config.stack(layer) != Stack::Encoder).then(|| (store(), store()));
        Self {
            layers: (0..config.layers.len()).map(of_layer).collect(),
            sources: vec![None; config.layers.len()],
            lengths: vec![0; slots],
            capacity,
            rows: Vec::new(),
            pass_started: false,
        }
    }

    /// Makes room for `count` more tokens of a slot in the next pass; returns the rows of all its tokens.
    pub(crate) fn reserve(&mut self, slot: usize, count: usize) -> Range<usize> {
        if std::mem::take(&mut self.pass_started) {
            self.rows.clear();
        }
        let (first, old) = (slot * self.capacity, self.lengths[slot]);
        let new = old + count;
        assert!(new <= self.capacity, "a sequence stays inside its slot");
        self.lengths[slot] = new;
        self.rows.extend(first + old..first + new);
        first..first + new
    }

    pub(crate) fn layer(&mut self, layer: usize) -> LayerCache<'_> {
        self.pass_started = true;
        LayerCache { store: &mut self.layers[layer], sources: &mut self.sources[layer], rows: &self.rows }
    }
}

/// One layer's part of a [`KvCache`] during a pass.
pub(crate) struct LayerCache<'a> {
    store: &'a mut Store,
    sources: &'a mut Store,
    rows: &'a [usize],
}

impl LayerCache<'_> {
    /// Writes the pass's keys and values into their rows; returns all rows.
    pub(crate) fn extend(&mut self, k: Tensor<2>, v: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
        // Taken out, so that nothing else holds the memory and it is written in place.
        let (keys, values) = self.store.take().expect("a layer extends its cache once a pass");
        let keys = write_rows(keys, k, self.rows.to_vec());
        let values = write_rows(values, v, self.rows.to_vec());
        *self.store = Some((keys.clone(), values.clone()));
        (keys, values)
    }

    /// Keeps the keys and values of sources that are read in this pass; returns those that were read last.
    pub(crate) fn sources(&mut self, read: Store) -> Store {
        if read.is_some() {
            *self.sources = read;
        }
        self.sources.clone()
    }
}
