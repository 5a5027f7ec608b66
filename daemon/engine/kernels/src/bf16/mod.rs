//! Products of matrices that are rounded to bfloat16, summed in `f32`: twice as fast as in `f32` and more, on a
//! processor that has instructions for them. Where these are fast enough, products in `f32` are made of them too, each
//! number the sum of three ([`Terms`]), which loses no digit.
//!
//! Weights are put in order for the instructions a block at a time, where they are used: forward and backward need them
//! in two different orders, and with the hundreds of tokens of a batch that takes a fiftieth of a product's time. So a
//! matrix is kept once, in whatever form it has ([`Source`]).

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod block;
#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
mod emulator;
mod left;
mod plain;
mod right;
mod terms;

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use crate::buffer::SharedMut;
use crate::matmul::{Piece, View, Write, parts, pieces};
pub(crate) use block::DEPTH;
use block::{Layout, PANEL, ROWS};
use left::{Left, Lefts};
use right::{Part, Right};
use terms::LANES;
pub(crate) use terms::{GROUP, Terms, round_all};

/// Whatever rows of numbers can be read from.
pub(crate) trait Source: Sync {
    /// `[rows, cols]`.
    fn dims(&self) -> [usize; 2];

    /// Writes a part of a row, as [`Terms::write`] does.
    fn read(&self, row: usize, cols: Range<usize>, terms: Terms, output: &mut [u16]);

    /// Has the same come closer, if it exists: it will be read soon.
    fn prefetch(&self, row: usize, cols: Range<usize>);
}

impl Source for View<'_> {
    fn dims(&self) -> [usize; 2] {
        View::dims(*self)
    }

    fn read(&self, row: usize, cols: Range<usize>, terms: Terms, output: &mut [u16]) {
        let (numbers, stride) = self.lines();
        terms.write(&numbers[row * stride..][cols], output);
    }

    fn prefetch(&self, row: usize, cols: Range<usize>) {
        let (numbers, stride) = self.lines();
        if row < self.dims()[0] {
            prefetch(&numbers[row * stride..][cols]);
        }
    }
}

/// Has numbers come closer that will be read soon. The processor itself looks ahead inside a page of memory only, and rows of a
/// large matrix lie in many.
pub(crate) fn prefetch<T>(numbers: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in numbers.chunks(64 / size_of::<T>()) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint, which reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
}

/// The right side of a product.
#[derive(Clone, Copy)]
pub(crate) struct Factor<'a> {
    pub(crate) matrix: &'a dyn Source,
    pub(crate) transposed: bool,
}

/// What multiplies the blocks, slowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instructions {
    /// Nothing that knows bfloat16.
    Plain,
    Avx512,
    Amx,
}

impl Instructions {
    /// The fastest that this processor has and the system lets us use.
    pub fn current() -> Self {
        #[cfg(target_arch = "x86_64")]
        if crate::simd::level() == crate::simd::Level::Avx512 {
            #[cfg(target_os = "linux")]
            if amx::available() {
                return Self::Amx;
            }
            if avx512::is_fast() {
                return Self::Avx512;
            }
        }
        Self::Plain
    }

    /// Lower-case name, as `doctor` shows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Avx512 => "avx512-bf16",
            Self::Amx => "amx",
        }
    }

    fn layout(self, terms: Terms) -> Layout {
        let (step, panel) = match self {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx => (LANES, amx::PANEL),
            _ => (1, PANEL),
        };
        Layout { terms, step, panel }
    }
}

/// Whether this processor multiplies bfloat16.
pub fn available() -> bool {
    Instructions::current() != Instructions::Plain
}

/// Fewer rows are not worth putting a slab in order twice.
const FEW_ROWS: usize = 64;
/// As many are worth putting all slabs in order for them alone.
const MANY_ROWS: usize = 256;

thread_local! {
    static LEFT: RefCell<Vec<Lefts>> = const { RefCell::new(Vec::new()) };
    static RIGHT: RefCell<Right> = RefCell::default();
}

/// The left side of products, put into terms once for all of them; more columns may follow it.
pub(crate) struct Prepared {
    dims: [usize; 2],
    instructions: Instructions,
    layout: Layout,
    lefts: Lefts,
}

impl Prepared {
    /// With room for as many more columns. Three terms are for AMX alone.
    pub(crate) fn new(instructions: Instructions, matrix: View<'_>, room: usize, terms: Terms) -> Self {
        let (dims, layout) = (matrix.dims(), instructions.layout(terms));
        let mut lefts = LEFT.with_borrow_mut(Vec::pop).unwrap_or_default();
        lefts.fill(matrix, layout.depth(dims[1]), room, layout);
        Self { dims, instructions, layout, lefts }
    }

    /// `destination (=|+=) scale · self · right`, row-major without gaps.
    pub(crate) fn times(&self, destination: &mut [f32], write: Write, scale: f32, right: Factor<'_>) {
        self.multiply(destination, write, scale, right, None);
    }

    /// `destination = self · right + more · below` in one pass over the destination, where there is room for `more`.
    pub(crate) fn times_with(&mut self, destination: &mut [f32], right: Factor<'_>, more: View<'_>, below: Factor<'_>) {
        let [_, inner] = self.dims;
        let (depth, layout) = (self.layout.depth(inner), self.layout);
        let last = inner.div_ceil(depth) - 1;
        self.lefts.write(more, last, inner - last * depth, layout);
        self.multiply(destination, Write::Replace, 1.0, right, Some(below));
    }

    fn multiply(
        &self,
        destination: &mut [f32],
        write: Write,
        scale: f32,
        right: Factor<'_>,
        below: Option<Factor<'_>>,
    ) {
        let ([rows, inner], [right_inner, cols]) = (self.dims, right.dims());
        assert_eq!(inner, right_inner);
        assert!(below.is_none_or(|below| below.dims()[1] == cols));
        assert!(destination.len() >= rows * cols);
        let destination = SharedMut::new(destination);
        let layout = self.layout;
        let depth = layout.depth(inner);
        let pieces = share(rows, cols, layout.slab(cols, depth));
        // Part by part: what the left side takes of one lies in a thread's cache while all slabs go past it.
        for (part, inside) in parts(inner, depth).enumerate() {
            let (len, below) = (layout.whole(inside.len()), below.filter(|_| inside.end == inner));
            let more = below.map_or(0, |below| layout.whole(below.dims()[0]));
            pieces.par_iter().for_each(|Piece { rows, cols: slab }| {
                // Taken, not borrowed: what waits for other threads may begin another product meanwhile.
                let mut panels = RIGHT.take();
                panels.begin(len + more, slab.len(), layout);
                panels.write(right, Part { depth: inside.clone(), cols: slab.clone(), behind: 0 }, layout);
                if let Some(below) = below {
                    panels.write(below, Part { depth: 0..below.dims()[0], cols: slab.clone(), behind: len }, layout);
                }
                let output = Output {
                    // SAFETY: inside the destination.
                    start: unsafe { destination.at(rows.start * cols + slab.start) },
                    stride: cols,
                    rows: rows.len(),
                    cols: slab.len(),
                    write: if part == 0 { write } else { Write::Accumulate },
                    scale,
                };
                let left = self.lefts.part(part).rows_from(rows.start);
                // SAFETY: this piece of the destination is this task's alone.
                unsafe { multiply(self.instructions, layout.terms, left, &panels, output) };
                RIGHT.set(panels);
            });
        }
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        let lefts = std::mem::take(&mut self.lefts);
        LEFT.with_borrow_mut(|unused| unused.push(lefts));
    }
}

impl Factor<'_> {
    /// `[inner, cols]`.
    fn dims(&self) -> [usize; 2] {
        let [rows, cols] = self.matrix.dims();
        if self.transposed { [cols, rows] } else { [rows, cols] }
    }
}

/// Where the product of two blocks goes.
#[derive(Clone, Copy)]
struct Output {
    start: *mut f32,
    /// From one row to the next.
    stride: usize,
    rows: usize,
    cols: usize,
    write: Write,
    scale: f32,
}

/// `output (=|+=) scale · left · right`.
///
/// # Safety
/// The processor has the instructions; the output's places are this caller's alone.
unsafe fn multiply(instructions: Instructions, terms: Terms, left: Left<'_>, right: &Right, output: Output) {
    // SAFETY: passed on.
    unsafe {
        match instructions {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Instructions::Amx => amx::multiply(left, right, terms, output),
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 => avx512::multiply(left, right, output),
            _ => plain::multiply(left, right, output),
        }
    }
}

/// With many rows, each thread takes its own of them: those that it made, and whose products it will use next, lie in its
/// caches. Slabs are put in order once for every part of the rows, so these are not small; unless there are fewer slabs than threads.
fn share(rows: usize, cols: usize, slab: usize) -> Vec<Piece> {
    let threads = rayon::current_num_threads();
    let of_many = (rows / MANY_ROWS).clamp(1, threads);
    let of_few = threads.div_ceil(cols.div_ceil(slab)).min(rows.div_ceil(FEW_ROWS));
    let size = rows.div_ceil(of_many.max(of_few)).next_multiple_of(2 * ROWS);
    pieces(rows, size, cols, slab)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Level;
    use crate::simd::testing::at_every_level;
    use crate::testing::{random, transposed, values};

    fn rounded(number: f32) -> f64 {
        half::bf16::from_f32(number).to_f64()
    }

    /// Runs `test` at each level with each of the instructions: AVX512-BF16 where the processor has it, AMX emulated
    /// where it does not.
    fn with_all_instructions(test: impl Fn(Level, Instructions)) {
        at_every_level(|level| {
            test(level, Instructions::Plain);
            #[cfg(target_arch = "x86_64")]
            if avx512::available() {
                test(level, Instructions::Avx512);
            }
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            {
                emulator::install();
                test(level, Instructions::Amx);
            }
        });
    }

    /// Left and right sides, each as it lies and as the transpose of what lies there.
    struct Sides {
        dims: [usize; 3],
        left: [Vec<f32>; 2],
        right: [Vec<f32>; 2],
    }

    impl Sides {
        fn new(dims: [usize; 3], seed: u64) -> Self {
            let [rows, inner, cols] = dims;
            Self::of(dims, values(random([rows, inner], seed)), values(random([inner, cols], seed + 1)))
        }

        fn of(dims @ [_, inner, cols]: [usize; 3], left: Vec<f32>, right: Vec<f32>) -> Self {
            let (left_t, right_t) = (transposed(&left, inner), transposed(&right, cols));
            Self { dims, left: [left, left_t], right: [right, right_t] }
        }

        fn left(&self, transposed: bool) -> View<'_> {
            let [rows, inner, _] = self.dims;
            if transposed {
                View::new(&self.left[1], [inner, rows]).t()
            } else {
                View::new(&self.left[0], [rows, inner])
            }
        }

        fn right(&self, transposed: bool) -> View<'_> {
            let [_, inner, cols] = self.dims;
            View::new(&self.right[usize::from(transposed)], if transposed { [cols, inner] } else { [inner, cols] })
        }

        /// The sum of the products at one place, and of their magnitudes, of numbers as `round` makes them.
        fn at(&self, row: usize, col: usize, round: fn(f32) -> f64) -> [f64; 2] {
            let [_, inner, cols] = self.dims;
            let term = |i: usize| round(self.left[0][row * inner + i]) * round(self.right[0][i * cols + col]);
            (0..inner).map(term).fold([0.0, 0.0], |[sum, magnitude], term| [sum + term, magnitude + term.abs()])
        }
    }

    /// Only where tiles multiply are there three.
    fn terms_of(instructions: Instructions) -> &'static [Terms] {
        if instructions == Instructions::Amx { &[Terms::One, Terms::Three] } else { &[Terms::One] }
    }

    /// The number that a number's terms stand for.
    fn stands_for(terms: Terms) -> fn(f32) -> f64 {
        if terms == Terms::One { rounded } else { f64::from }
    }

    #[test]
    fn products_are_those_of_the_numbers_that_the_terms_stand_for() {
        with_all_instructions(|level, instructions| {
            // One row, odd depths, rests of rows, of panels and of slabs, more than one part of the depth, rows for
            // every thread.
            let shapes = [
                [1, 1, 1],
                [7, 5, 3],
                [9, 33, 16],
                [16, 300, 47],
                [40, 62, 30],
                [64, 40, 64],
                [65, 512, 49],
                [130, 1700, 1000],
                [700, 40, 70],
            ];
            for [rows, inner, cols] in shapes {
                // The others take their time.
                let cols = if instructions == Instructions::Avx512 { cols } else { cols.min(100) };
                let sides = Sides::new([rows, inner, cols], 1);
                for &terms in terms_of(instructions) {
                    for [left_t, right_t] in [[false, false], [false, true], [true, false], [true, true]] {
                        let matrix = sides.right(right_t);
                        let right = Factor { matrix: &matrix, transposed: right_t };
                        let left = Prepared::new(instructions, sides.left(left_t), 0, terms);
                        let mut product = vec![f32::NAN; rows * cols];
                        left.times(&mut product, Write::Replace, 1.0, right);
                        left.times(&mut product, Write::Accumulate, -0.5, right);
                        let step = if rows * cols > 10_000 { 97 } else { 1 };
                        for at in (0..rows * cols).step_by(step) {
                            let (row, col) = (at / cols, at % cols);
                            let [sum, magnitude] = sides.at(row, col, stands_for(terms));
                            let (got, want) = (f64::from(product[at]), 0.5 * sum);
                            // As many roundings of a sum in f32 as there are terms, at worst.
                            let tolerance = magnitude * inner as f64 * f64::from(f32::EPSILON);
                            assert!(
                                (got - want).abs() <= tolerance,
                                "{level:?} {instructions:?} {terms:?} {rows}x{inner}x{cols} [{row}, {col}]: {got} is not {want}",
                            );
                        }
                    }
                }
            }
        });
    }

    #[test]
    fn more_columns_are_multiplied_in_the_same_pass() {
        with_all_instructions(|level, instructions| {
            for ([rows, inner, cols], rank) in [([3, 5, 7], 2), ([70, 96, 64], 16), ([33, 1700, 40], 5)] {
                let (sides, more) = (Sides::new([rows, inner, cols], 1), Sides::new([rows, rank, cols], 3));
                for (terms, right_t) in terms_of(instructions).iter().flat_map(|&t| [(t, false), (t, true)]) {
                    let matrices = [sides.right(right_t), more.right(right_t)];
                    let [right, below] = matrices.each_ref().map(|matrix| Factor { matrix, transposed: right_t });
                    let mut left = Prepared::new(instructions, sides.left(false), rank, terms);
                    // The room does no harm where it is empty.
                    let mut alone = vec![f32::NAN; rows * cols];
                    left.times(&mut alone, Write::Replace, 1.0, right);
                    let mut product = vec![f32::NAN; rows * cols];
                    left.times_with(&mut product, right, more.left(false), below);
                    for at in 0..rows * cols {
                        let (row, col) = (at / cols, at % cols);
                        let [[sum, magnitude], [more, of_more]] =
                            [&sides, &more].map(|s| s.at(row, col, stands_for(terms)));
                        let tolerance = (magnitude + of_more) * (inner + rank) as f64 * f64::from(f32::EPSILON);
                        for (got, want) in [(alone[at], sum), (product[at], sum + more)] {
                            let error = (f64::from(got) - want).abs();
                            assert!(
                                error <= tolerance,
                                "{level:?} {instructions:?} {terms:?} {rows}x{inner}+{rank}x{cols} [{row}, {col}]: {got} is not {want}"
                            );
                        }
                    }
                }
            }
        });
    }

    /// Weights of 8 and of 16 significant bits, whose further terms are zero, beside others.
    #[test]
    fn three_terms_are_as_exact_as_float32() {
        let [rows, inner, cols] = [40, 512, 64];
        let masks = [u32::MAX << 16, u32::MAX << 8, u32::MAX];
        with_all_instructions(|level, instructions| {
            if instructions != Instructions::Amx {
                return;
            }
            for mask in masks {
                let right = values(random([inner, cols], 2)).into_iter().map(|w| f32::from_bits(w.to_bits() & mask));
                let sides = Sides::of([rows, inner, cols], values(random([rows, inner], 1)), right.collect());
                let (mut ours, mut plain) = (vec![0.0; rows * cols], vec![0.0; rows * cols]);
                let (left, right) = (sides.left(false), sides.right(false));
                let factor = Factor { matrix: &right, transposed: false };
                Prepared::new(instructions, left, 0, Terms::Three).times(&mut ours, Write::Replace, 1.0, factor);
                crate::matmul::matmul(&mut plain, Write::Replace, 1.0, left, right);
                let error = |product: &[f32]| {
                    let errors = product.iter().enumerate().map(|(at, &got)| {
                        let [want, magnitude] = sides.at(at / cols, at % cols, f64::from);
                        ((f64::from(got) - want) / magnitude).powi(2)
                    });
                    (errors.sum::<f64>() / (rows * cols) as f64).sqrt()
                };
                let (ours, plain) = (error(&ours), error(&plain));
                assert!(ours < 2.0 * plain, "{level:?} {mask:x}: {ours:e} beside {plain:e} of a product in f32");
            }
        });
    }

    #[test]
    fn three_terms_are_the_number() {
        at_every_level(|level| {
            // Of all magnitudes whose last term is still a normal number.
            let numbers: Vec<f32> = (0..20_003u32)
                .map(|i| f32::from_bits(i.wrapping_mul(2_654_435_761)))
                .filter(|number| number.abs() > 1e-30 && number.abs() < 3e38)
                .chain([0.0, 1.0, -1.0, 1.0 + f32::EPSILON])
                .collect();
            let mut places = vec![0; Terms::Three.places(numbers.len())];
            Terms::Three.write(&numbers, &mut places);
            for (at, &number) in numbers.iter().enumerate() {
                let term =
                    |term: usize| half::bf16::from_bits(places[(at / GROUP * 3 + term) * GROUP + at % GROUP]).to_f64();
                assert_eq!(term(0) + term(1) + term(2), f64::from(number), "{level:?} {number:e}");
            }
        });
    }

    #[test]
    fn rounding_is_to_nearest_even_and_keeps_what_is_no_number() {
        at_every_level(|level| {
            let numbers: Vec<f32> =
                (0..20_000).map(|i| f32::from_bits(i * 214_013)).chain([f32::NAN, -f32::NAN, f32::MAX]).collect();
            let mut bits = vec![0; numbers.len()];
            round_all(&numbers, &mut bits);
            for (number, bits) in numbers.iter().zip(bits) {
                let (got, want) = (half::bf16::from_bits(bits), half::bf16::from_f32(*number));
                let is_zero_where_tiny = got.to_f32() == 0.0 && want.to_f32().is_subnormal();
                assert!(
                    got == want || got.is_nan() && want.is_nan() || is_zero_where_tiny,
                    "{level:?} {number}: {got}, want {want}"
                );
            }
        });
    }

    #[test]
    fn what_is_no_number_stays_one_and_stays_in_its_row() {
        let multiply = |instructions, terms, left: View<'_>, right: View<'_>, transposed| {
            let right = Factor { matrix: &right, transposed };
            let mut product = vec![0.0; left.dims()[0] * right.dims()[1]];
            let left = Prepared::new(instructions, left, 0, terms);
            left.times(&mut product, Write::Replace, 1.0, right);
            product
        };
        // All on one thread, so that products use the memory of those before: no number is what lies there beyond
        // their rows and depths.
        let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let (nowhere, left) = (vec![f32::NAN; 64 * 600], [1.0, f32::NAN, 1.0, 2.0, 3.0, 4.0]);
        with_all_instructions(|level, instructions| {
            let sides = [(false, [2, 1]), (true, [1, 2])];
            for (terms, (transposed, dims)) in terms_of(instructions).iter().flat_map(|&t| sides.map(|s| (t, s))) {
                let [all, some] = one_thread.install(|| {
                    let nowhere = [[64, 600], [600, 64]].map(|dims| View::new(&nowhere, dims));
                    let (left, right) = (View::new(&left, [3, 2]), View::new(&[1.0, 0.0], dims));
                    let all = multiply(instructions, terms, nowhere[0], nowhere[1], false);
                    [all, multiply(instructions, terms, left, right, transposed)]
                });
                assert!(all.iter().all(|sum| sum.is_nan()), "{level:?} {instructions:?} {terms:?}");
                assert!(some[0].is_nan(), "{level:?} {instructions:?} {terms:?}");
                assert_eq!(some[1..], [1.0, 3.0], "{level:?} {instructions:?} {terms:?}");
            }
        });
    }
}
