//! What stands for a number in a product: one number of 16 bits, or three.
//!
//! Where it is three, those of a [`GROUP`] lie together: its first terms, its second, its third.

use bytemuck::{cast_slice, cast_slice_mut};

use super::block::TILE;
use crate::simd::simd_fn;

/// Words of a register.
pub(super) const LANES: usize = 16;
/// Numbers of a register.
pub(crate) const GROUP: usize = 2 * LANES;

/// By how many bfloat16 numbers a number of 32 bits is represented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Terms {
    /// By the nearest.
    One,
    /// By their sum: the nearest, what is nearest to the rest, and the rest of that. Each holds 8 significant bits, so
    /// the sum is the number itself, unless a term is smaller than a normal number (then it is zero) or the first is
    /// larger than the largest (then nothing is a number).
    Three,
}

impl Terms {
    pub(super) fn count(self) -> usize {
        match self {
            Self::One => 1,
            Self::Three => 3,
        }
    }

    /// Places that numbers of a row take.
    pub(crate) fn places(self, numbers: usize) -> usize {
        match self {
            Self::One => numbers,
            Self::Three => 3 * numbers.next_multiple_of(GROUP),
        }
    }

    /// Writes the numbers' bits. A group that is not full is filled up with zeros.
    pub(crate) fn write(self, numbers: &[f32], places: &mut [u16]) {
        match self {
            Self::One => round_all(numbers, places),
            Self::Three => split_all(numbers, places),
        }
    }

    /// Writes the numbers of each of up to [`TILE`] rows into one tile for each term.
    pub(super) fn write_tiles(self, rows: &[[f32; GROUP]], tiles: &mut [[u16; GROUP]]) {
        match self {
            Self::One => round_all(rows.as_flattened(), &mut tiles.as_flattened_mut()[..GROUP * rows.len()]),
            Self::Three => {
                let (first, rest) = tiles.split_at_mut(TILE);
                let (second, third) = rest.split_at_mut(TILE);
                let places =
                    first.iter_mut().zip(second).zip(third).map(|((first, second), third)| [first, second, third]);
                split(rows.iter().zip(places));
            }
        }
    }

    /// How many terms are not zero everywhere, in a row or in those before it, which have so many; a row is looked at only
    /// if it may have more.
    pub(super) fn used(self, places: &[u16], before: usize) -> usize {
        if before == self.count() {
            return before;
        }
        match last_terms(places) {
            [_, true] => 3,
            [true, false] => before.max(2),
            [false, false] => before,
        }
    }

    /// Where the terms number `term` of columns from a multiple of [`LANES`] on lie in a row.
    pub(super) fn place(self, col: usize, term: usize) -> usize {
        match self {
            Self::One => col,
            Self::Three => (col / GROUP * 3 + term) * GROUP + col % GROUP,
        }
    }
}

/// The upper half of the bits, rounded to nearest even; not a number stays one.
#[inline(always)]
pub(super) fn round(number: f32) -> u16 {
    let bits = number.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    (if number.is_nan() { bits >> 16 | 0x40 } else { rounded }) as u16
}

/// The bits of numbers as bfloat16. Where an instruction does it, what is below the smallest normal number becomes 0, as
/// which products take it anyhow.
pub(crate) fn round_all(numbers: &[f32], rounded: &mut [u16]) {
    #[cfg(target_arch = "x86_64")]
    if crate::simd::level() == crate::simd::Level::Avx512 && super::avx512::available() {
        // SAFETY: the processor has the instructions.
        return unsafe { super::avx512::round_all(numbers, rounded) };
    }
    round_plainly(numbers, rounded);
}

/// The bits of numbers as three terms, group by group.
fn split_all(numbers: &[f32], places: &mut [u16]) {
    let (whole, rest) = numbers.as_chunks::<GROUP>();
    let (groups, last) = places[..Terms::Three.places(numbers.len())].split_at_mut(3 * GROUP * whole.len());
    split_groups(whole, cast_slice_mut(groups));
    if let [last] = cast_slice_mut(last) {
        let mut numbers = [0.0; GROUP];
        numbers[..rest.len()].copy_from_slice(rest);
        split_groups(&[numbers], std::slice::from_mut(last));
    }
}

/// Into one row of three terms' groups each.
fn split_groups(numbers: &[[f32; GROUP]], places: &mut [[[u16; GROUP]; 3]]) {
    split(numbers.iter().zip(places.iter_mut().map(|place| place.each_mut())));
}

/// Three terms of each group.
fn split<'a>(groups: impl Iterator<Item = (&'a [f32; GROUP], [&'a mut [u16; GROUP]; 3])>) {
    #[cfg(target_arch = "x86_64")]
    if crate::simd::level() == crate::simd::Level::Avx512 && super::avx512::available() {
        // SAFETY: the processor has the instructions.
        return unsafe { super::avx512::split(groups) };
    }
    for (numbers, [first, second, third]) in groups {
        for (((&number, first), second), third) in numbers.iter().zip(first).zip(second).zip(third) {
            *first = round(number);
            let rest = number - widened(*first);
            *second = round(rest);
            *third = round(rest - widened(*second));
        }
    }
}

simd_fn! {
    /// Whether any of the second and of the third terms of a row is not zero.
    fn last_terms(places: &[u16]) -> [bool; 2] {
        let _ = FMA;
        let mut bits = [[0u16; GROUP]; 2];
        for [_, second, third] in cast_slice::<u16, [[u16; GROUP]; 3]>(places) {
            for (bits, terms) in bits.iter_mut().zip([second, third]) {
                bits.iter_mut().zip(terms).for_each(|(bits, term)| *bits |= term);
            }
        }
        bits.map(|bits| bits.iter().any(|&bits| bits != 0))
    }
}

#[inline(always)]
fn widened(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

simd_fn! {
    fn round_plainly(numbers: &[f32], rounded: &mut [u16]) {
        let _ = FMA;
        for (rounded, &number) in rounded.iter_mut().zip(numbers) {
            *rounded = round(number);
        }
    }
}
