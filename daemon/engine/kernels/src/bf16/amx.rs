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
use super::block::{LANES, Left, PANEL, Right};
use crate::matmul::Write;
use crate::simd::simd_fn;

/// Rows of a tile.
const TILE: usize = 16;
/// Rows of the left side that go past each panel at a time: twice a tile's, so that each tile of the right side that
/// comes from the second-level cache is used twice.
const BLOCK: usize = 2 * TILE;
/// From one row of sums, and from one pair of a panel, to the next.
const ROW_BYTES: usize = 4 * PANEL;

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
pub(super) unsafe fn multiply(left: Left<'_>, right: &Right, output: Output) {
    assert!(!left.is_in_panels() && right.pairs.is_multiple_of(LANES) && right.pairs <= left.row);
    // SAFETY: this is palette 1 as the manual has it; nothing else in this process uses tiles.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &CONFIG, options(nostack, readonly)) };
    let mut sums = Sums([0.0; BLOCK * PANEL]);
    for row in (0..output.rows).step_by(BLOCK) {
        let (left, rows) = (left.rows_from(row), BLOCK.min(output.rows - row));
        for (panel, col) in (0..output.cols).step_by(PANEL).enumerate() {
            let (panel, cols) = (right.panel(panel), PANEL.min(output.cols - col));
            // SAFETY: tiles are configured.
            unsafe { block(left, panel, right.pairs, [rows, cols], &mut sums) };
            // SAFETY: the place lies inside the output.
            let start = unsafe { output.start.add(row * output.stride + col) };
            write(&sums, Output { start, rows, cols, ..output });
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

/// Chooses the code for as many tiles as there are. What lies in them beyond the rows is of no use and does no harm.
///
/// # Safety
/// Tiles are configured as by [`CONFIG`].
unsafe fn block(left: Left<'_>, right: &[u32], pairs: usize, [rows, cols]: [usize; 2], sums: &mut Sums) {
    let whole = rows.next_multiple_of(TILE);
    assert!(left.words.len() >= (whole - 1) * left.row + pairs && right.len() >= pairs * PANEL && pairs > 0);
    let upper = left.words.as_ptr();
    let lower = upper.wrapping_add(if whole > TILE { TILE * left.row } else { 0 });
    let multiply = match (whole / TILE, cols.div_ceil(LANES)) {
        (1, 1) => sums_1_1,
        (1, 2) => sums_1_2,
        (1, _) => sums_1_3,
        (_, 1) => sums_2_1,
        (_, 2) => sums_2_2,
        (_, _) => sums_2_3,
    };
    // SAFETY: both sides hold whole tiles of as many pairs, as was just asserted; the sums have room for six tiles.
    unsafe { multiply(upper, lower, 4 * left.row, right.as_ptr(), pairs / LANES, sums.0.as_mut_ptr()) }
}

/// One step of [`sums`]: `A` and `B` load the upper and the lower tile of the left side, `0`, `1` and `2` one of the
/// right side; `A0` to `B2` multiply what was loaded.
#[rustfmt::skip]
macro_rules! instruction {
    (A) => { "tileloadd tmm6, [{upper} + {left_row}*1]" };
    (B) => { "tileloadd tmm6, [{lower} + {left_row}*1]" };
    (0) => { "tileloadd tmm7, [{right} + {row}*1]" };
    (1) => { "tileloadd tmm7, [{right} + {row}*1 + 64]" };
    (2) => { "tileloadd tmm7, [{right} + {row}*1 + 128]" };
    (A0) => { "tdpbf16ps tmm0, tmm6, tmm7" };
    (A1) => { "tdpbf16ps tmm1, tmm6, tmm7" };
    (A2) => { "tdpbf16ps tmm2, tmm6, tmm7" };
    (B0) => { "tdpbf16ps tmm3, tmm6, tmm7" };
    (B1) => { "tdpbf16ps tmm4, tmm6, tmm7" };
    (B2) => { "tdpbf16ps tmm5, tmm6, tmm7" };
}

/// A function that multiplies one or two tiles of the left side with up to three of the right side: which lines a step
/// has, and which tiles hold sums and where these go. A tile is loaded again only where none is left to keep it in.
macro_rules! sums {
    ($name:ident: [$($line:tt)*], $($tile:literal => $place:literal),*) => {
        /// # Safety
        /// Tiles are configured; all pointers are to whole tiles.
        unsafe fn $name(upper: *const u32, lower: *const u32, left_row: usize, right: *const u32, steps: usize, sums: *mut f32) {
            // SAFETY: the caller's promise. No tile is expected to keep anything after the block.
            unsafe {
                asm!(
                    $(concat!("tilezero tmm", $tile),)*
                    "2:",
                    $(instruction!($line),)*
                    "add {upper}, 64",
                    "add {lower}, 64",
                    "add {right}, {step}",
                    "dec {steps}",
                    "jnz 2b",
                    $(concat!("tilestored [{sums} + {row}*1 + ", $place, "], tmm", $tile),)*
                    upper = inout(reg) upper => _,
                    lower = inout(reg) lower => _,
                    right = inout(reg) right => _,
                    steps = inout(reg) steps => _,
                    sums = in(reg) sums,
                    left_row = in(reg) left_row,
                    row = in(reg) ROW_BYTES,
                    step = const LANES * ROW_BYTES,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

// A lower tile's sums begin 16 rows below: at 16 · 192 bytes.
sums!(sums_1_1: [A 0 A0], 0 => 0);
sums!(sums_1_2: [A 0 A0 1 A1], 0 => 0, 1 => 64);
sums!(sums_1_3: [A 0 A0 1 A1 2 A2], 0 => 0, 1 => 64, 2 => 128);
sums!(sums_2_1: [A 0 A0 B B0], 0 => 0, 3 => 3072);
sums!(sums_2_2: [A 0 A0 1 A1 B B1 0 B0], 0 => 0, 1 => 64, 3 => 3072, 4 => 3136);
sums!(sums_2_3: [A 0 A0 1 A1 2 A2 B B2 1 B1 0 B0], 0 => 0, 1 => 64, 2 => 128, 3 => 3072, 4 => 3136, 5 => 3200);

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
