//! Frozen matrices in fewer bits than `f32`, one form a file. Products decode them tile by tile ([`product`]): no
//! whole matrix ever exists in `f32`, neither where it is used nor where it is made.
//!
//! To add a form, write a file with a type that implements [`Form`] and one that implements [`Builder`], and a
//! [`Format`] that names it.

mod bf16;
mod f16;
mod gguf;
mod int8;
mod nf4;
#[cfg(feature = "gpu")]
mod on_gpu;
mod product;

use std::cell::RefCell;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use justtrain_weights::gguf::TensorType;
use rayon::prelude::*;

use crate::bf16::{Source, Terms};
#[cfg(feature = "gpu")]
pub(crate) use on_gpu::linear as linear_on_gpu;
pub(crate) use product::{FEW_TOKENS, Tiles, times, times_transposed};

/// A frozen row-major matrix `[rows, cols]`. Clones share the memory.
#[derive(Debug, Clone)]
pub struct Packed {
    dims: [usize; 2],
    form: Arc<dyn Form>,
    /// Copied at the first use there.
    #[cfg(feature = "gpu")]
    on_gpu: Arc<std::sync::OnceLock<(Device, Box<dyn on_gpu::OnGpu>)>>,
}

/// What numbers are rounded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// 16 bits a weight: the upper half of an `f32`, rounded to nearest even.
    Bf16,
    /// 16 bits a weight: IEEE half precision, in which what is beyond 65504 is infinite.
    F16,
    /// 8 bits a weight and a scale for each row.
    Int8,
    /// 4 bits a weight and a scale for each 64 of them; with `double_quantization` the scales are 8 bits wide.
    Nf4 { double_quantization: bool },
}

impl Format {
    /// Bytes in memory of a matrix.
    pub fn bytes(self, [rows, cols]: [usize; 2]) -> usize {
        let len = rows * cols;
        match self {
            Self::Bf16 | Self::F16 => 2 * len,
            Self::Int8 => len + 4 * rows,
            Self::Nf4 { double_quantization } => nf4::bytes(len, double_quantization),
        }
    }
}

/// How the numbers of a matrix are held.
trait Form: Debug + Send + Sync {
    /// Writes numbers `start .. start + output.len()`, counted row by row.
    fn decode(&self, start: usize, output: &mut [f32]);

    /// The same as [`Terms::write`] writes them.
    fn decode_terms(&self, range: Range<usize>, terms: Terms, output: &mut [u16]) {
        thread_local! {
            static NUMBERS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
        }
        NUMBERS.with_borrow_mut(|numbers| {
            if numbers.len() < range.len() {
                numbers.resize(range.len(), 0.0);
            }
            let numbers = &mut numbers[..range.len()];
            self.decode(range.start, numbers);
            terms.write(numbers, output);
        });
    }

    /// Has numbers come closer that will be read soon, where they are so large that this is worth it.
    fn prefetch(&self, _range: Range<usize>) {}

    /// Takes other numbers, rounded by chance; false where it is no form that is trained.
    fn set_by_chance(&mut self, _weights: &[f32], _seed: u64) -> bool {
        false
    }

    /// Bytes in memory.
    fn bytes(&self) -> usize;

    /// A copy in a GPU's memory, of the numbers themselves where the GPU does not decode this form.
    #[cfg(feature = "gpu")]
    fn upload(&self, len: usize, device: &Device) -> Box<dyn on_gpu::OnGpu> {
        let mut numbers = vec![0.0; len];
        self.decode(0, &mut numbers);
        Box::new(on_gpu::Plain::f32(numbers, device))
    }
}

/// Makes a [`Form`] of whole rows that come one after the other.
trait Builder {
    /// All parts but the last hold a multiple of [`PART_ROWS`] rows.
    fn push(&mut self, weights: &[f32]);

    fn finish(self: Box<Self>) -> Arc<dyn Form>;
}

/// Rows of a part are a multiple of this, so that no block of a form is cut.
const PART_ROWS: usize = 64;
/// About as many numbers are asked for at a time: 4 MiB.
const PART: usize = 1 << 20;

impl Packed {
    /// Asks `read` for one part of the rows after the other, so that no more of the matrix than that is in `f32`.
    pub fn from_rows(format: Format, dims: [usize; 2], mut read: impl FnMut(Range<usize>, &mut [f32])) -> Self {
        let [rows, cols] = dims;
        let mut builder: Box<dyn Builder> = match format {
            Format::Bf16 => Box::new(bf16::Bf16::with_capacity(rows * cols)),
            Format::F16 => Box::new(f16::F16::with_capacity(rows * cols)),
            Format::Int8 => Box::new(int8::Int8::with_capacity(dims)),
            Format::Nf4 { double_quantization } => Box::new(nf4::Builder::new(rows * cols, double_quantization)),
        };
        let part_rows = (PART / cols.max(1)).next_multiple_of(PART_ROWS).min(rows);
        let mut part = vec![0.0; part_rows * cols];
        let mut start = 0;
        while start < rows {
            let end = rows.min(start + part_rows);
            let part = &mut part[..(end - start) * cols];
            read(start..end, part);
            builder.push(part);
            start = end;
        }
        Self::new(dims, builder.finish())
    }

    pub fn from_f32(format: Format, weights: &[f32], dims: [usize; 2]) -> Self {
        assert_eq!(weights.len(), dims[0] * dims[1]);
        Self::from_rows(format, dims, |rows, part| {
            part.copy_from_slice(&weights[rows.start * dims[1]..rows.end * dims[1]]);
        })
    }

    /// Takes other numbers, in bfloat16, each rounded up or down by chance, so that on average it stays what it was. The same
    /// `seed` gives the same matrix. In place where nothing else holds it: memory for every matrix at every step would lie
    /// where gradients had been, and keep those of the next step from fitting there.
    pub fn set_by_chance(&mut self, weights: &[f32], seed: u64) {
        assert_eq!(weights.len(), self.dims[0] * self.dims[1]);
        let in_place = Arc::get_mut(&mut self.form).is_some_and(|form| form.set_by_chance(weights, seed));
        if !in_place {
            self.form = Arc::new(bf16::Bf16::rounded_by_chance(weights, seed));
        }
        #[cfg(feature = "gpu")]
        {
            self.on_gpu = Arc::default();
        }
    }

    /// The blocks of a GGUF as they are.
    pub fn gguf(tensor_type: TensorType, blocks: Vec<u8>, dims: [usize; 2]) -> Self {
        assert!(dims[1].is_multiple_of(tensor_type.block_len()));
        assert_eq!(blocks.len(), dims[0] * dims[1] / tensor_type.block_len() * tensor_type.block_bytes());
        Self::new(dims, Arc::new(gguf::Blocks::new(tensor_type, blocks)))
    }

    fn new(dims: [usize; 2], form: Arc<dyn Form>) -> Self {
        Self {
            dims,
            form,
            #[cfg(feature = "gpu")]
            on_gpu: Arc::default(),
        }
    }

    pub fn dims(&self) -> [usize; 2] {
        self.dims
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.form.bytes()
    }

    /// Every number; for exports, references, and weights that are trained, one after the other.
    pub fn to_f32(&self) -> Vec<f32> {
        let cols = self.dims[1];
        let mut output = vec![0.0; self.dims[0] * cols];
        let rows = output.par_chunks_mut(cols.max(1)).enumerate();
        rows.for_each(|(row, output)| self.form.decode(row * cols, output));
        output
    }

    /// Some rows, one after the other.
    pub fn gather(&self, rows: &[u32]) -> Vec<f32> {
        let [all, cols] = self.dims;
        let mut output = vec![0.0; rows.len() * cols];
        output.par_chunks_mut(cols).zip(rows).for_each(|(output, &row)| {
            assert!((row as usize) < all);
            self.form.decode(row as usize * cols, output);
        });
        output
    }

    /// Σ w² of each row, one row after the other.
    pub(crate) fn row_squares(&self, device: &Device) -> Tensor<1> {
        let [rows, cols] = self.dims;
        let square = |row: usize| {
            let mut weights = vec![0.0; cols];
            self.form.decode(row * cols, &mut weights);
            weights.iter().map(|&weight| f64::from(weight) * f64::from(weight)).sum::<f64>() as f32
        };
        let squares: Vec<f32> = (0..rows).into_par_iter().map(square).collect();
        Tensor::from_data(TensorData::new(squares, [rows]), &device.clone().without_autodiff())
    }

    /// The whole matrix on a device, without gradient tracking: what ops without a kernel of their own go through.
    pub(crate) fn to_tensor(&self, device: &Device) -> Tensor<2> {
        let device = device.clone().without_autodiff();
        #[cfg(feature = "gpu")]
        if !crate::device::is_cpu(&device) {
            let upload = || (device.clone(), self.form.upload(self.dims[0] * self.dims[1], &device));
            let (home, numbers) = self.on_gpu.get_or_init(upload);
            assert_eq!(*home, device, "a matrix is used on one GPU");
            return numbers.decode().reshape(self.dims);
        }
        Tensor::from_data(TensorData::new(self.to_f32(), self.dims), &device)
    }
}

impl Source for Packed {
    fn dims(&self) -> [usize; 2] {
        self.dims
    }

    fn read(&self, row: usize, cols: Range<usize>, terms: Terms, output: &mut [u16]) {
        let start = row * self.dims[1];
        self.form.decode_terms(start + cols.start..start + cols.end, terms, output);
    }

    fn prefetch(&self, row: usize, cols: Range<usize>) {
        let start = row * self.dims[1];
        if row < self.dims[0] {
            self.form.prefetch(start + cols.start..start + cols.end);
        }
    }
}

impl Tiles for Packed {
    fn dims(&self) -> [usize; 2] {
        self.dims
    }

    fn decode_tile(&self, rows: Range<usize>, cols: Range<usize>, output: &mut [f32]) {
        for (row, output) in rows.zip(output.chunks_exact_mut(cols.len())) {
            self.form.decode(row * self.dims[1] + cols.start, output);
        }
    }
}

/// Not a number where one of the weights is not.
#[inline(always)]
fn largest_magnitude(weights: &[f32]) -> f32 {
    // Without their signs, floats order as their bits do, and whatever is not a number comes last.
    f32::from_bits(weights.iter().map(|weight| weight.to_bits() & 0x7fff_ffff).max().unwrap_or(0))
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use crate::testing::{random, values};

    /// The same random numbers in every form that can hold a matrix of these sizes, by name.
    pub(crate) fn every_form(dims: [usize; 2], seed: u64) -> Vec<(String, Packed)> {
        let weights = values(random(dims, seed));
        let formats = [
            Format::Bf16,
            Format::F16,
            Format::Int8,
            Format::Nf4 { double_quantization: false },
            Format::Nf4 { double_quantization: true },
        ];
        let made = formats.map(|format| (format!("{format:?}"), Packed::from_f32(format, &weights, dims)));
        let blocks = TensorType::ALL.into_iter().filter(|kind| kind.block_len() > 1);
        let kept = blocks.filter(|kind| dims[1].is_multiple_of(kind.block_len())).map(|kind| {
            let len = dims[0] * dims[1] / kind.block_len() * kind.block_bytes();
            // Bytes below 60 make no half-precision number that is large or not a number.
            let bytes = (0..len as u64).map(|i| (i * 37 + i * i % 11 + seed) as u8 % 60).collect();
            (kind.to_string(), Packed::gguf(kind, bytes, dims))
        });
        made.into_iter().chain(kept).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::testing::every_form;
    use super::*;
    use crate::Weight;
    use crate::testing::assert_close;

    #[test]
    fn any_part_is_the_same_part_of_the_whole() {
        crate::simd::testing::at_every_level(|level| {
            for dims in [[1, 1], [7, 33], [5, 130], [3, 256], [4, 512]] {
                for (name, packed) in every_form(dims, 3) {
                    let whole = packed.to_f32();
                    for (rows, cols) in [(0..dims[0], 0..dims[1]), (dims[0] / 2..dims[0], dims[1] / 3..dims[1])] {
                        let mut tile = vec![f32::NAN; rows.len() * cols.len()];
                        packed.decode_tile(rows.clone(), cols.clone(), &mut tile);
                        let want = rows.flat_map(|row| &whole[row * dims[1]..][cols.clone()]);
                        assert!(tile.iter().eq(want), "{level:?} {name} {dims:?}");
                    }
                    let gathered = packed.gather(&[dims[0] as u32 - 1, 0]);
                    assert_eq!(gathered[..dims[1]], whole[whole.len() - dims[1]..], "{level:?} {name} {dims:?}");
                    assert_eq!(gathered[dims[1]..], whole[..dims[1]], "{level:?} {name} {dims:?}");
                }
            }
        });
    }

    #[test]
    fn squares_of_rows_are_those_of_the_decoded_matrix() {
        let device = Device::flex();
        for (name, packed) in every_form([5, 256], 3) {
            let dense = Weight::from(packed.to_tensor(&device)).row_squares(&device);
            assert_close(Weight::from(packed).row_squares(&device), dense, 1e-6, &name);
        }
    }

    #[test]
    fn parts_make_the_same_matrix_as_the_whole() {
        // More than one part of 2²⁰ numbers, the last one short.
        let dims = [1601, 1000];
        let weights: Vec<f32> = (0..dims[0] * dims[1]).map(|i| ((i * i % 8191) as f32 / 8191.0 - 0.5) * 0.1).collect();
        // Doubly quantised scales depend on the whole matrix: `nf4` tests them.
        for format in [Format::Bf16, Format::F16, Format::Int8, Format::Nf4 { double_quantization: false }] {
            let mut parts = 0;
            let whole = Packed::from_rows(format, dims, |rows, part| {
                parts += 1;
                part.copy_from_slice(&weights[rows.start * dims[1]..rows.end * dims[1]]);
            });
            assert!(parts > 1);
            let rows = Packed::from_f32(format, &weights[1536 * 1000..], [65, 1000]);
            assert_eq!(whole.to_f32()[1536 * 1000..], rows.to_f32(), "{format:?}");
        }
    }

    #[test]
    fn other_numbers_are_taken_in_place_unless_a_copy_is_held() {
        let mut packed = Packed::from_f32(Format::Bf16, &[1.0; 64], [8, 8]);
        let copy = packed.clone();
        packed.set_by_chance(&[2.0; 64], 1);
        assert_eq!((copy.to_f32(), packed.to_f32()), (vec![1.0; 64], vec![2.0; 64]));
        let place = Arc::as_ptr(&packed.form).cast::<u8>();
        packed.set_by_chance(&[3.0; 64], 1);
        assert_eq!(packed.to_f32(), vec![3.0; 64]);
        assert_eq!(Arc::as_ptr(&packed.form).cast::<u8>(), place);
    }

    #[test]
    fn bytes_a_weight() {
        let dims = [512, 512];
        let weights = vec![0.5; 512 * 512];
        let bytes = |format: Format| {
            let bytes = Packed::from_f32(format, &weights, dims).bytes();
            assert_eq!(format.bytes(dims), bytes);
            bytes as f64 / (512.0 * 512.0)
        };
        assert!(bytes(Format::Nf4 { double_quantization: true }) < 0.517);
        assert_eq!(bytes(Format::Nf4 { double_quantization: false }), 0.5625);
        assert!(bytes(Format::Int8) < 1.01);
        assert_eq!((bytes(Format::Bf16), bytes(Format::F16)), (2.0, 2.0));
    }
}
