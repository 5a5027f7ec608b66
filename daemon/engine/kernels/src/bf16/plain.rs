//! The product of one block in plain code: what the instructions are tested against, on every processor.

use super::Output;
use super::block::{PANEL, ROWS};
use super::left::Left;
use super::right::Right;
use crate::matmul::Write;

/// `output (=|+=) scale · left · right`.
///
/// # Safety
/// The output's places are this caller's alone.
pub(super) unsafe fn multiply(left: Left<'_>, right: &Right, output: Output) {
    for row in 0..output.rows {
        let left = |pair: usize| left.words[row / ROWS * left.panel + row % ROWS * left.row + pair * left.pair];
        for col in 0..output.cols {
            let panel = right.panel(col / PANEL);
            let products = (0..right.pairs).map(|pair| {
                let (a, b) = (halves(left(pair)), halves(panel[pair * PANEL + col % PANEL]));
                a[0] * b[0] + a[1] * b[1]
            });
            let sum = output.scale * products.sum::<f32>();
            // SAFETY: the caller's promise.
            let place = unsafe { &mut *output.start.add(row * output.stride + col) };
            *place = if output.write == Write::Accumulate { *place + sum } else { sum };
        }
    }
}

fn halves(word: u32) -> [f32; 2] {
    [f32::from_bits(word << 16), f32::from_bits(word & 0xffff_0000)]
}
