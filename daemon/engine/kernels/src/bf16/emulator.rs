//! AMX on a processor without it: each of its instructions faults, and the handler of that signal does what Intel's
//! manual says (volume 2) and goes on behind it. So tests run the very code that a processor with AMX runs.
//!
//! What the manual forbids ends the process, and so does a tile left configured at the next configuration: the kernel
//! under test releases what it took.

use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::sync::Once;

use crate::simd::{mul_add, simd_fn};

/// From now on, in all threads, if this processor needs it.
pub(super) fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        if super::amx::available() {
            return;
        }
        // SAFETY: all zeros is an action without flags and with nothing blocked; the handler only touches this thread's
        // tiles and what the instruction says.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_illegal_instruction as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            assert_eq!(libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut()), 0);
        }
    });
}

#[derive(Clone, Copy)]
struct Tile {
    rows: usize,
    row_bytes: usize,
    data: [[u32; 16]; 16],
}

struct Tiles {
    configured: bool,
    tiles: [Tile; 8],
}

const RELEASED: Tiles = Tiles { configured: false, tiles: [Tile { rows: 0, row_bytes: 0, data: [[0; 16]; 16] }; 8] };

thread_local! {
    static TILES: UnsafeCell<Tiles> = const { UnsafeCell::new(RELEASED) };
}

extern "C" fn on_illegal_instruction(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: with `SA_SIGINFO` the third argument is the interrupted thread's context.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let at = registers[libc::REG_RIP as usize] as *const u8;
    // SAFETY: the processor fetched an instruction from there. The longest of these has ten bytes, and behind each
    // comes more code.
    let code = unsafe { std::slice::from_raw_parts(at, 10) };
    // SAFETY: only this thread's handler takes them, and it is not interrupted by itself.
    let tiles = TILES.with(|tiles| unsafe { &mut *tiles.get() });
    match tiles.execute(code, registers) {
        Ok(len) => registers[libc::REG_RIP as usize] += len as i64,
        Err(what) => {
            let message = format!("SIGILL at {at:?}: {what}: {code:02x?}\n");
            // SAFETY: writes out a string that lives meanwhile.
            unsafe { libc::write(2, message.as_ptr().cast(), message.len()) };
            std::process::abort();
        }
    }
}

/// An address's parts and the length of what was read.
struct Address {
    base: u64,
    /// Index times scale, where there is an index.
    stride: Option<u64>,
    len: usize,
}

impl Tiles {
    /// Returns the instruction's length.
    fn execute(&mut self, code: &[u8], registers: &[i64]) -> Result<usize, &'static str> {
        // VEX in three bytes: map 0F38, 128 bits, W0. Its R, X and B are inverted, as is vvvv.
        let [0xc4, rxb, wvlp, opcode, modrm, rest @ ..] = code else { return Err("no VEX prefix") };
        if rxb & 0x1f != 2 || wvlp & 0x84 != 0 {
            return Err("not in the map of AMX");
        }
        let (high_index, high_base) = (!rxb >> 6 & 1, !rxb >> 5 & 1);
        let (vvvv, prefix) = (!wvlp >> 3 & 15, wvlp & 3);
        let (mode, reg, rm) = (modrm >> 6, usize::from(modrm >> 3 & 7), usize::from(modrm & 7));
        let in_memory = mode != 3;
        let address = || address(mode, *modrm & 7, rest, high_index, high_base, registers);
        const NONE: u8 = 0;
        /// On a load the hint that the same will not be loaded soon again.
        const HINT: u8 = 1;
        const F3: u8 = 2;
        const F2: u8 = 3;
        match (opcode, prefix) {
            (0x49, NONE) if *modrm == 0xc0 => {
                *self = RELEASED;
                Ok(5)
            }
            (0x49, NONE) if in_memory && reg == 0 => {
                let address = address()?;
                let place = address.base.wrapping_add(address.stride.unwrap_or(0));
                // SAFETY: the instruction reads 64 bytes there.
                self.configure(unsafe { *(place as *const [u8; 64]) })?;
                Ok(5 + address.len)
            }
            (0x49, F2) if !in_memory && rm == 0 => {
                self.tile(reg)?.data = [[0; 16]; 16];
                Ok(5)
            }
            (0x4b, HINT | F2 | F3) if in_memory && rm == 4 => {
                let address = address()?;
                let stride = address.stride.unwrap_or(0);
                let tile = self.tile(reg)?;
                if prefix != F3 {
                    tile.data = [[0; 16]; 16];
                }
                for row in 0..tile.rows {
                    let place = address.base.wrapping_add(stride.wrapping_mul(row as u64)) as *mut u32;
                    for (col, word) in tile.data[row][..tile.row_bytes / 4].iter_mut().enumerate() {
                        // SAFETY: the instruction reads, or writes, there.
                        unsafe {
                            match prefix {
                                F3 => place.add(col).write_unaligned(*word),
                                _ => *word = place.add(col).read_unaligned(),
                            }
                        }
                    }
                }
                Ok(5 + address.len)
            }
            (0x5c, F3) if !in_memory => {
                let (left, right) = (*self.tile(rm)?, *self.tile(vvvv.into())?);
                let sums = self.tile(reg)?;
                if reg == rm || reg == usize::from(vvvv) || rm == usize::from(vvvv) {
                    return Err("one tile twice");
                }
                if sums.rows != left.rows || sums.row_bytes != right.row_bytes || left.row_bytes != 4 * right.rows {
                    return Err("tiles that do not fit");
                }
                multiply(sums, &left, &right);
                Ok(5)
            }
            _ => Err("no instruction of AMX"),
        }
    }

    fn configure(&mut self, config: [u8; 64]) -> Result<(), &'static str> {
        if self.configured {
            return Err("tiles were not released");
        }
        let is_zero = |range: std::ops::Range<usize>| config[range].iter().all(|&byte| byte == 0);
        if config[0] != 1 || config[1] != 0 || !is_zero(2..16) || !is_zero(32..48) || !is_zero(56..64) {
            return Err("not a configuration of palette 1 from its first row on");
        }
        *self = Tiles { configured: true, ..RELEASED };
        for (index, tile) in self.tiles.iter_mut().enumerate() {
            tile.row_bytes = u16::from_le_bytes([config[16 + 2 * index], config[17 + 2 * index]]).into();
            tile.rows = config[48 + index].into();
            if tile.rows > 16 || tile.row_bytes > 64 || (tile.rows == 0) != (tile.row_bytes == 0) {
                return Err("a tile of an impossible size");
            }
        }
        Ok(())
    }

    fn tile(&mut self, index: usize) -> Result<&mut Tile, &'static str> {
        let tile = self.tiles.get_mut(index).ok_or("no such tile")?;
        if tile.rows == 0 || !tile.row_bytes.is_multiple_of(4) {
            return Err("a tile that is not configured");
        }
        Ok(tile)
    }
}

/// Behind the ModRM byte.
fn address(
    mode: u8,
    rm: u8,
    rest: &[u8],
    high_index: u8,
    high_base: u8,
    registers: &[i64],
) -> Result<Address, &'static str> {
    let (base, stride, sib) = if rm == 4 {
        let [scale, index, base] = [rest[0] >> 6, rest[0] >> 3 & 7 | high_index << 3, rest[0] & 7 | high_base << 3];
        let stride = (index != 4).then(|| register(index, registers) << scale);
        (base, stride, 1)
    } else {
        (rm | high_base << 3, None, 0)
    };
    let displacement = match mode {
        // There the base would be none, or the instruction's own place: not in what is tested here.
        0 if base & 7 == 5 => return Err("an address without a base"),
        0 => (0, 0),
        1 => (i64::from(rest[sib].cast_signed()), 1),
        _ => (i32::from_le_bytes([rest[sib], rest[sib + 1], rest[sib + 2], rest[sib + 3]]).into(), 4),
    };
    let base = register(base, registers).wrapping_add_signed(displacement.0);
    Ok(Address { base, stride, len: sib + displacement.1 })
}

/// A general register by its number in an instruction.
fn register(number: u8, registers: &[i64]) -> u64 {
    use libc::{REG_RAX, REG_RBP, REG_RBX, REG_RCX, REG_RDI, REG_RDX, REG_RSI, REG_RSP};
    let low = [REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI];
    let place = if number < 8 { low[usize::from(number)] } else { libc::REG_R8 + i32::from(number) - 8 };
    registers[place as usize].cast_unsigned()
}

simd_fn! {
    /// `sums += left · right`. Where there is no fused multiply-add, a product is rounded once more.
    fn multiply(sums: &mut Tile, left: &Tile, right: &Tile) {
        let (rows, cols) = (sums.rows, sums.row_bytes / 4);
        for (sums, left) in sums.data.iter_mut().zip(&left.data).take(rows) {
            let mut apart = [[0.0f32; 16]; 2];
            for (&left, right) in left.iter().zip(&right.data).take(right.rows) {
                for (half, apart) in apart.iter_mut().enumerate() {
                    let number = |word: u32| flushed(f32::from_bits(if half == 0 { word << 16 } else { word & 0xffff_0000 }));
                    for (sum, &right) in apart.iter_mut().zip(right).take(cols) {
                        *sum = flushed(mul_add::<FMA>(number(left), number(right), *sum));
                    }
                }
            }
            for (col, sum) in sums.iter_mut().enumerate().take(cols) {
                let both = flushed(apart[0][col] + apart[1][col]);
                *sum = flushed(flushed(f32::from_bits(*sum)) + both).to_bits();
            }
        }
    }
}

/// Zero for what is smaller than a normal number.
#[inline(always)]
fn flushed(number: f32) -> f32 {
    if number.abs() < f32::MIN_POSITIVE { 0.0f32.copysign(number) } else { number }
}

/// `tileloadd` and `tileloaddt1` of tile 6, from `rsi` in rows that are `r11` apart: the hint changes nothing.
#[test]
fn a_load_with_the_hint_is_a_load() {
    let mut config = [0; 64];
    config[0] = 1;
    config[16 + 2 * 6] = 64;
    config[48 + 6] = 16;
    let memory: Vec<u32> = (0..16 * 20).collect();
    let mut registers = [0; 23];
    registers[libc::REG_RSI as usize] = memory.as_ptr().addr() as i64;
    registers[libc::REG_R11 as usize] = 80;
    for prefix in [0x7b, 0x79] {
        let mut tiles = RELEASED;
        tiles.configure(config).unwrap();
        let code = [0xc4, 0xa2, prefix, 0x4b, 0x34, 0x1e, 0, 0, 0, 0];
        assert_eq!(tiles.execute(&code, &registers), Ok(6));
        for (row, words) in tiles.tiles[6].data.iter().enumerate() {
            assert_eq!(words[..], memory[20 * row..][..16]);
        }
    }
}
