//! A tensor of a checkpoint, decoded whole or a few rows at a time. What was read no longer counts as this process's
//! memory.

use std::ops::Range;

use crate::gguf::{Blocks, Gguf, TensorInfo, TensorType};
use crate::safetensors::Elements;

/// A tensor that is there and has the expected shape.
pub struct StoredTensor<'a> {
    shape: &'a [usize],
    encoding: Encoding<'a>,
}

/// Kinds of floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SixteenBits {
    Bf16,
    F16,
}

enum Encoding<'a> {
    Plain(Elements<'a>),
    Blocks {
        blocks: Blocks<'a>,
        gguf: &'a Gguf,
        tensor: &'a TensorInfo,
        /// By how much each stored number is larger than Hugging Face's.
        offset: f32,
        /// The file has rows and columns exchanged.
        transposed: bool,
    },
}

impl<'a> StoredTensor<'a> {
    pub(crate) fn plain(shape: &'a [usize], elements: Elements<'a>) -> Self {
        Self { shape, encoding: Encoding::Plain(elements) }
    }

    pub(crate) fn blocks(
        shape: &'a [usize],
        blocks: Blocks<'a>,
        gguf: &'a Gguf,
        tensor: &'a TensorInfo,
        offset: f32,
    ) -> Self {
        Self { shape, encoding: Encoding::Blocks { blocks, gguf, tensor, offset, transposed: false } }
    }

    /// The same, of a matrix whose rows are the columns of what is stored.
    pub(crate) fn transposed(mut self) -> Self {
        if let Encoding::Blocks { transposed, .. } = &mut self.encoding {
            *transposed = true;
        }
        self
    }

    /// Every element, row-major.
    pub fn read(&self) -> Vec<f32> {
        let mut output = vec![0.0; self.shape.iter().product()];
        match &self.encoding {
            Encoding::Plain(elements) => elements.read(0, &mut output),
            Encoding::Blocks { blocks, gguf, tensor, offset, transposed } => {
                blocks.decode_rows(0..blocks.rows(), &mut output);
                take_away(*offset, &mut output);
                gguf.release(tensor);
                if *transposed {
                    output = columns(&output, blocks.row_len());
                }
            }
        }
        output
    }

    /// Decodes some rows of a matrix, or elements of a vector of plain floats.
    ///
    /// # Panics
    /// When there are no such rows, or `output` does not hold exactly their elements.
    pub fn read_rows(&self, rows: Range<usize>, output: &mut [f32]) {
        let cols: usize = self.shape.iter().skip(1).product();
        assert!(self.shape.first().is_some_and(|&all| rows.end <= all) && output.len() == rows.len() * cols);
        match &self.encoding {
            Encoding::Plain(elements) => elements.read(rows.start * cols, output),
            // Each of these rows has a number in every stored one.
            Encoding::Blocks { transposed: true, .. } => {
                output.copy_from_slice(&self.read()[rows.start * cols..rows.end * cols]);
            }
            Encoding::Blocks { blocks, gguf, tensor, offset, .. } => {
                blocks.decode_rows(rows, output);
                take_away(*offset, output);
                gguf.release(tensor);
            }
        }
    }

    /// In which sixteen bits every number of plain floats can be held as it is; None where they are wider, and for blocks.
    pub fn sixteen_bits(&self) -> Option<SixteenBits> {
        match &self.encoding {
            Encoding::Plain(elements) => elements.sixteen_bits(),
            Encoding::Blocks { tensor, .. } => match tensor.tensor_type {
                TensorType::F16 => Some(SixteenBits::F16),
                TensorType::BF16 => Some(SixteenBits::Bf16),
                _ => None,
            },
        }
    }

    /// A GGUF's rows as they are in the file, encoded; None for plain floats.
    pub fn encoded(&self) -> Option<(TensorType, Vec<u8>)> {
        let Encoding::Blocks { blocks, gguf, tensor, .. } = &self.encoding else { return None };
        if tensor.tensor_type.block_len() == 1 {
            return None;
        }
        let bytes = blocks.bytes().to_vec();
        gguf.release(tensor);
        Some((tensor.tensor_type, bytes))
    }
}

/// The columns of a matrix, one after the other.
fn columns(matrix: &[f32], row_len: usize) -> Vec<f32> {
    (0..row_len).flat_map(|column| matrix.iter().skip(column).step_by(row_len).copied()).collect()
}

fn take_away(offset: f32, numbers: &mut [f32]) {
    if offset != 0.0 {
        numbers.iter_mut().for_each(|number| *number -= offset);
    }
}
