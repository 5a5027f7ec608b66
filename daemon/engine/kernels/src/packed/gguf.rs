//! Blocks of a GGUF file, kept as they are.

use justtrain_weights::gguf::{TensorType, decode_blocks};

use super::Form;
use crate::simd::simd_fn;

/// The most numbers in a block.
const LONGEST: usize = 256;

#[derive(Debug)]
pub(super) struct Blocks {
    tensor_type: TensorType,
    bytes: Vec<u8>,
}

impl Blocks {
    pub(super) fn new(tensor_type: TensorType, bytes: Vec<u8>) -> Self {
        Self { tensor_type, bytes }
    }

    /// The encoded blocks `first .. first + count`.
    fn blocks(&self, first: usize, count: usize) -> &[u8] {
        let size = self.tensor_type.block_bytes();
        &self.bytes[first * size..(first + count) * size]
    }

    /// Part of one block, from its number `at` on.
    fn decode_part(&self, block: usize, at: usize, output: &mut [f32]) {
        let mut whole = [0.0; LONGEST];
        let whole = &mut whole[..self.tensor_type.block_len()];
        decode(self.tensor_type, self.blocks(block, 1), whole);
        output.copy_from_slice(&whole[at..at + output.len()]);
    }
}

impl Form for Blocks {
    fn decode(&self, start: usize, output: &mut [f32]) {
        let len = self.tensor_type.block_len();
        let (mut block, at) = (start / len, start % len);
        let mut rest = output;
        if at > 0 {
            let (now, later) = rest.split_at_mut(rest.len().min(len - at));
            self.decode_part(block, at, now);
            block += 1;
            rest = later;
        }
        let (whole, part) = rest.split_at_mut(rest.len() / len * len);
        decode(self.tensor_type, self.blocks(block, whole.len() / len), whole);
        if !part.is_empty() {
            self.decode_part(block + whole.len() / len, 0, part);
        }
    }

    fn bytes(&self) -> usize {
        self.bytes.len()
    }
}

simd_fn! {
    fn decode(tensor_type: TensorType, bytes: &[u8], output: &mut [f32]) {
        let _ = FMA;
        decode_blocks(tensor_type, bytes, output);
    }
}
