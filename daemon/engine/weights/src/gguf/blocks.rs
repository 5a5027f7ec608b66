//! A tensor as a GGUF file stores it: rows of whole blocks, decoded when they are wanted and no sooner.

use std::borrow::Cow;
use std::ops::Range;

use super::{TensorInfo, TensorType, dequantize};

/// Encoded rows, in Hugging Face's order.
#[derive(Debug, Clone)]
pub struct Blocks<'a> {
    tensor_type: TensorType,
    row_len: usize,
    /// The file's own memory, or a copy where rows had to move.
    bytes: Cow<'a, [u8]>,
}

impl<'a> Blocks<'a> {
    pub(crate) fn new(tensor: &TensorInfo, bytes: Cow<'a, [u8]>) -> Self {
        Self { tensor_type: tensor.tensor_type, row_len: row_len(tensor), bytes }
    }

    /// One of `count` equal parts that lie one after the other.
    pub(crate) fn part(tensor: &TensorInfo, bytes: &'a [u8], index: usize, count: usize) -> Self {
        let len = bytes.len() / count;
        Self::new(tensor, Cow::Borrowed(&bytes[index * len..(index + 1) * len]))
    }

    pub fn tensor_type(&self) -> TensorType {
        self.tensor_type
    }

    /// Elements of one row: the tensor's last dimension; 1 for a vector of plain floats.
    pub fn row_len(&self) -> usize {
        self.row_len
    }

    pub fn rows(&self) -> usize {
        self.bytes.len().checked_div(self.row_bytes()).unwrap_or(0)
    }

    /// The rows' encoding, one row after the other.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Decodes some rows into `output`, row-major.
    ///
    /// # Panics
    /// When there are no such rows, or `output` does not hold exactly their elements.
    pub fn decode_rows(&self, rows: Range<usize>, output: &mut [f32]) {
        let row_bytes = self.row_bytes();
        dequantize(self.tensor_type, &self.bytes[rows.start * row_bytes..rows.end * row_bytes], output);
    }

    fn row_bytes(&self) -> usize {
        self.tensor_type.row_bytes(self.row_len)
    }
}

/// A vector of plain floats can be moved element by element; one of blocks is a single row.
pub(crate) fn row_len(tensor: &TensorInfo) -> usize {
    match tensor.shape.as_slice() {
        [] => 1,
        [_] if tensor.tensor_type.block_len() == 1 => 1,
        [.., last] => *last,
    }
}
