//! The product of one block, with AMX: 16 rows times 16 columns times 16 pairs an instruction, out of tiles of 1 KiB.
//!
//! A panel's pairs are the rows of a tile of the right side as they lie. Rust has no stable names for these
//! instructions, so they are written as assembly. Intel's manual (volume 2, "TDPBF16PS"): along a tile's pairs, first
//! halves and second halves add up apart, each by fused multiply-adds; then both are added, and that to the sum before.
//! All round to nearest even, and what is smaller than a normal number is zero.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::sync::OnceLock;

use super::Output;
use super::block::TILE;
use super::left::Left;
use super::right::Right;
use super::terms::{LANES, Terms};
use crate::matmul::Write;
use crate::simd::simd_fn;

/// Rows of the left side that go past each panel at a time: twice a tile's, so that each tile of the right side that
/// comes from the second-level cache is used twice.
const BLOCK: usize = 2 * TILE;
/// Columns of the right side: with as many rows, four tiles of sums, which leaves two tiles for each side.
pub(super) const PANEL: usize = 2 * LANES;

/// Whether the processor has the instructions and the kernel lets this process use them, asked for once.
pub(super) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| has_instructions() && is_permitted())
}

/// Tiles, products of bfloat16 (leaf 7, EDX), and an operating system that saves tiles with a thread's registers.
fn has_instructions() -> bool {
    const AMX: u32 = 1 << 24 | 1 << 22;
    const OSXSAVE: u32 = 1 << 27;
    const TILES: u64 = 1 << 18 | 1 << 17;
    #[target_feature(enable = "xsave")]
    fn saved() -> u64 {
        // SAFETY: register 0 is there wherever the instruction is.
        unsafe { _xgetbv(0) }
    }
    __cpuid(0).eax >= 7
        && __cpuid_count(7, 0).edx & AMX == AMX
        && __cpuid(1).ecx & OSXSAVE != 0
        // SAFETY: OSXSAVE says that the instruction is there.
        && unsafe { saved() } & TILES == TILES
}

/// Tiles make a thread's saved state larger by 8 KiB, which Linux gives only to a process that asks; all its threads
/// may then use them, those that run already too (Documentation/arch/x86/xstate.rst).
fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: this call takes two numbers and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// `output (=|+=) scale · left · right`.
///
/// # Safety
/// [`available`] is true; the output's rows and columns lie in memory that is this caller's alone.
pub(super) unsafe fn multiply(left: Left<'_>, right: &Right, terms: Terms, output: Output) {
    assert!(left.row == LANES && right.pairs.is_multiple_of(LANES * terms.count()));
    assert!(TILE * right.pairs <= 2 * left.panel && right.width == PANEL);
    // SAFETY: this is palette 1 as the manual has it; nothing else in this process uses tiles.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &CONFIG, options(nostack, readonly)) };
    let mut sums = Sums([0.0; BLOCK * PANEL]);
    for row in (0..output.rows).step_by(BLOCK) {
        let (left, rows) = (left.rows_from(row), BLOCK.min(output.rows - row));
        for (panel, col) in (0..output.cols).step_by(PANEL).enumerate() {
            let cols = PANEL.min(output.cols - col);
            // SAFETY: the place lies inside the output.
            let start = unsafe { output.start.add(row * output.stride + col) };
            // SAFETY: tiles are configured; the places are this caller's alone.
            unsafe { block(left, right, panel, terms, Output { start, rows, cols, ..output }, &mut sums) };
        }
    }
    // SAFETY: no tile is in use any more. Without this the kernel would go on saving them.
    unsafe { asm!("tilerelease", options(nostack, nomem)) };
}

#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// All eight tiles whole.
static CONFIG: Config = Config {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Of a block times a panel.
#[repr(align(64))]
struct Sums([f32; BLOCK * PANEL]);

/// Multiplies by the code for as many tiles as there are, straight into the output where it has room for them.
///
/// # Safety
/// Tiles are configured as by [`CONFIG`]; the output's places are this caller's alone.
unsafe fn block(left: Left<'_>, right: &Right, panel: usize, terms: Terms, output: Output, sums: &mut Sums) {
    let Output { rows, cols, write: how, scale, .. } = output;
    let whole = rows.next_multiple_of(TILE);
    let (has_lower, next_tile) = (whole > TILE, 2 * left.panel);
    assert!(left.words.len() >= (whole / TILE - 1) * next_tile + TILE * right.pairs && right.pairs > 0);
    let upper = left.words.as_ptr();
    let lower = upper.wrapping_add(if has_lower { next_tile } else { 0 });
    let multiply = match (terms, has_lower, cols > LANES) {
        (Terms::One, true, true) => sums_2_2,
        (Terms::One, true, false) => sums_2_1,
        (Terms::One, false, _) => sums_1_2,
        (Terms::Three, _, true) => [sums_with_one, sums_with_two, sums_with_three][right.terms - 1],
        (Terms::Three, _, false) => sums_of_three_2_1,
    };
    let steps = [right.first, right.pairs - right.first].map(|pairs| pairs / LANES / terms.count());
    let all = (rows == BLOCK || rows == TILE && terms == Terms::One) && cols == PANEL;
    let is_in_place = all && how == Write::Replace && scale == 1.0;
    let buffer = sums.0.as_mut_ptr();
    let (place, stride) = if is_in_place { (output.start, output.stride) } else { (buffer, PANEL) };
    let strides = [left.row, PANEL, stride].map(|words| 4 * words);
    // SAFETY: both sides hold whole tiles of as many pairs, as was just asserted, or the upper tile twice; an output as large
    // as the tiles has room for them, and the buffer has.
    unsafe { multiply([upper, lower], right.panel(panel).as_ptr(), steps, place, strides, buffer) };
    if !is_in_place {
        write(sums, output);
    }
}

/// One step of [`sums`]. `U` and `L` load a tile of the upper and the lower rows, `X` and `Y` one of the left and the right
/// columns: the only terms, or those that the number says. `UX` to `LY` multiply. Of numbers of one term, the left side's block stays in the
/// first-level cache while all panels go past it, and these are not to drive it out, hence the hint in `tileloaddt1`. `S` stores
/// a tile every fourth step, to no use: on a processor of 2024 (family 6, model 167) a store that comes more than some
/// 136 products after the one before it takes 250 ns, a sixth of a block's time.
#[rustfmt::skip]
macro_rules! instruction {
    (U) => { "tileloadd tmm4, [{upper} + {left_row}*1]" };
    (L) => { "tileloadd tmm5, [{lower} + {left_row}*1]" };
    (X) => { "tileloaddt1 tmm6, [{right} + {right_row}*1]" };
    (Y) => { "tileloaddt1 tmm7, [{right} + {right_row}*1 + 64]" };
    (U0) => { "tileloadd tmm4, [{upper} + {left_row}*1]" };
    (U1) => { "tileloadd tmm4, [{upper} + {left_row}*1 + 1024]" };
    (U2) => { "tileloadd tmm4, [{upper} + {left_row}*1 + 2048]" };
    (L0) => { "tileloadd tmm5, [{lower} + {left_row}*1]" };
    (L1) => { "tileloadd tmm5, [{lower} + {left_row}*1 + 1024]" };
    (L2) => { "tileloadd tmm5, [{lower} + {left_row}*1 + 2048]" };
    (X0) => { "tileloadd tmm6, [{right} + {right_row}*1]" };
    (X1) => { "tileloadd tmm6, [{right} + {right_row}*1 + 2048]" };
    (X2) => { "tileloadd tmm6, [{right} + {right_row}*1 + 4096]" };
    (Y0) => { "tileloadd tmm7, [{right} + {right_row}*1 + 64]" };
    (Y1) => { "tileloadd tmm7, [{right} + {right_row}*1 + 2112]" };
    (Y2) => { "tileloadd tmm7, [{right} + {right_row}*1 + 4160]" };
    (UX) => { "tdpbf16ps tmm0, tmm4, tmm6" };
    (UY) => { "tdpbf16ps tmm1, tmm4, tmm7" };
    (LX) => { "tdpbf16ps tmm2, tmm5, tmm6" };
    (LY) => { "tdpbf16ps tmm3, tmm5, tmm7" };
    (S) => { "test {steps}, 3\njnz 7f\ntilestored [{unused} + {left_row}*1], tmm4\n7:" };
}

/// A function that multiplies one or two tiles of the left side with one or two of the right side: how many terms a number has,
/// which lines a step, which lines a step behind the right side's first matrix, and which tiles hold sums and where in a row these
/// go. A tile is loaded again only where none is left to keep it in.
macro_rules! sums {
    (
        $name:ident, $terms:literal, [$($line:tt)*], [$($rest:tt)*],
        $($tile:literal => $place:literal),*; $($low:literal => $low_place:literal),*
    ) => {
        /// # Safety
        /// Tiles are configured; all pointers are to whole tiles, whose rows are so many bytes apart: those of the left
        /// side, the right side and the sums. There is room for an unused tile.
        unsafe fn $name(
            left: [*const u32; 2],
            right: *const u32,
            steps: [usize; 2],
            sums: *mut f32,
            strides: [usize; 3],
            unused: *mut f32,
        ) {
            // SAFETY: the caller's promise. No tile is expected to keep anything after the block.
            unsafe {
                asm!(
                    $(concat!("tilezero tmm", $tile),)*
                    $(concat!("tilezero tmm", $low),)*
                    "2:",
                    $(instruction!($line),)*
                    "add {upper}, {left_step}",
                    "add {lower}, {left_step}",
                    "add {right}, {right_step}",
                    "dec {steps}",
                    "jnz 2b",
                    "test {more}, {more}",
                    "jz 4f",
                    "3:",
                    $(instruction!($rest),)*
                    "add {upper}, {left_step}",
                    "add {lower}, {left_step}",
                    "add {right}, {right_step}",
                    "dec {more}",
                    "jnz 3b",
                    "4:",
                    $(concat!("tilestored [{sums} + {row}*1 + ", $place, "], tmm", $tile),)*
                    // Sixteen rows below.
                    "mov {lower}, {row}",
                    "shl {lower}, 4",
                    "add {sums}, {lower}",
                    $(concat!("tilestored [{sums} + {row}*1 + ", $low_place, "], tmm", $low),)*
                    upper = inout(reg) left[0] => _,
                    lower = inout(reg) left[1] => _,
                    right = inout(reg) right => _,
                    steps = inout(reg) steps[0] => _,
                    more = inout(reg) steps[1] => _,
                    sums = inout(reg) sums => _,
                    left_row = in(reg) strides[0],
                    right_row = in(reg) strides[1],
                    row = in(reg) strides[2],
                    unused = in(reg) unused,
                    left_step = const $terms * 4 * LANES * TILE,
                    right_step = const $terms * 4 * LANES * PANEL,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
    ($name:ident, $terms:literal, [$($line:tt)*], $($tiles:tt)*) => {
        sums!($name, $terms, [$($line)*], [$($line)*], $($tiles)*);
    };
    (with $name:ident, [$($line:tt)*]) => {
        sums!(
            $name, 3, [$($line)*],
            [
                X0 Y0 U2 UX UY L2 LX LY U1 UX UY L1 LX LY
                X1 UX LX Y1 UY LY U0 UX UY L0 LX LY
                X2 UX LX Y2 UY LY
                X0 UX LX Y0 UY LY S
            ],
            0 => 0, 1 => 64; 2 => 0, 3 => 64
        );
    };
}

sums!(sums_2_2, 1, [U X UX Y UY L LX LY S], 0 => 0, 1 => 64; 2 => 0, 3 => 64);
sums!(sums_2_1, 1, [U X UX L LX S], 0 => 0; 2 => 0);
sums!(sums_1_2, 1, [U X UX Y UY S], 0 => 0, 1 => 64;);
// Six of the nine products of terms: first with all three, second with first and second, third with first. What the
// others would add is less than half a unit in the last place of the product of both numbers.
sums!(with sums_with_three, [
    X0 Y0 U2 UX UY L2 LX LY U1 UX UY L1 LX LY
    X1 UX LX Y1 UY LY U0 UX UY L0 LX LY
    X2 UX LX Y2 UY LY
    X0 UX LX Y0 UY LY S
]);
// Where the right side's third terms, or all but its first ones, are zero: weights of 16 bits, or of fewer with scales.
sums!(with sums_with_two, [
    X0 Y0 U2 UX UY L2 LX LY U1 UX UY L1 LX LY
    X1 UX LX Y1 UY LY U0 UX UY L0 LX LY
    X0 UX LX Y0 UY LY S
]);
sums!(with sums_with_one, [X0 Y0 U2 UX UY L2 LX LY U1 UX UY L1 LX LY U0 UX UY L0 LX LY S]);
sums!(
    sums_of_three_2_1, 3,
    [X0 U2 UX L2 LX U1 UX L1 LX X1 UX LX U0 UX L0 LX X2 UX LX X0 UX LX S],
    0 => 0; 2 => 0
);

simd_fn! {
    /// Of the sums, the rows and columns that the output has.
    fn write(sums: &Sums, output: Output) {
        let _ = FMA;
        for (row, sums) in sums.0.chunks(PANEL).enumerate().take(output.rows) {
            // SAFETY: whoever makes an output promises that its places are valid and nobody else's.
            let places = unsafe { std::slice::from_raw_parts_mut(output.start.add(row * output.stride), output.cols) };
            match output.write {
                Write::Replace => places.iter_mut().zip(sums).for_each(|(place, sum)| *place = output.scale * sum),
                Write::Accumulate => places.iter_mut().zip(sums).for_each(|(place, sum)| *place += output.scale * sum),
            }
        }
    }
}
