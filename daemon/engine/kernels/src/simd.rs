//! Run-time dispatch over the processor's vector instructions.
//!
//! Loops are written once, in plain Rust that the compiler vectorises; `simd_fn!` compiles each of them for AVX-512,
//! for AVX2+FMA and for the baseline, and calls the widest that this processor has.

use std::sync::atomic::{AtomicU8, Ordering};

/// A set of instructions that the kernels are compiled for, narrowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Scalar,
    Avx2,
    Avx512,
}

impl Level {
    /// Lower-case name, as `doctor` shows it.
    pub fn name(self) -> &'static str {
        match self {
            Level::Scalar => "scalar",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
        }
    }

    /// The widest level of this processor.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if avx2 && avx512 {
                return Level::Avx512;
            }
            if avx2 {
                return Level::Avx2;
            }
        }
        Level::Scalar
    }
}

const UNKNOWN: u8 = u8::MAX;
static CURRENT: AtomicU8 = AtomicU8::new(UNKNOWN);

/// The level in use.
#[inline]
pub fn level() -> Level {
    match CURRENT.load(Ordering::Relaxed) {
        0 => Level::Scalar,
        1 => Level::Avx2,
        2 => Level::Avx512,
        _ => {
            let level = Level::detect();
            CURRENT.store(level as u8, Ordering::Relaxed);
            level
        }
    }
}

/// Compiles a loop for every [`Level`]. Inside the body the constant `FMA` says whether a fused multiply-add is one
/// instruction; pass it on to [`mul_add`].
macro_rules! simd_fn {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body<const FMA: bool>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx512($($arg: $ty),*) $(-> $ret)? { body::<true>($($arg),*) }

                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx2($($arg: $ty),*) $(-> $ret)? { body::<true>($($arg),*) }

                match $crate::simd::level() {
                    // SAFETY: `level` returns only what the processor has.
                    $crate::simd::Level::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::simd::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::simd::Level::Scalar => {}
                }
            }
            body::<false>($($arg),*)
        }
    };
}
pub(crate) use simd_fn;

/// `a · b + c`, fused where that is one instruction (elsewhere it would be a slow library call).
#[inline(always)]
pub(crate) fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `eˣ` within 2 units in the last place for normal results; 0 below −87.3, capped above 88.7.
///
/// Cephes' `expf`: range reduction by `ln 2` in two parts, then a polynomial of degree 5. No branches, so that loops
/// over it vectorise.
#[inline(always)]
#[allow(clippy::excessive_precision)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    const LOWEST: f32 = -87.336_54;
    const HIGHEST: f32 = 88.722_8;
    // In this order what is not a number stays so.
    let capped = if x > HIGHEST { HIGHEST } else { x };
    let clamped = if capped < LOWEST { LOWEST } else { capped };
    // Adding 1.5 · 2²³ rounds to the nearest integer, which then stands in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let shifted = mul_add::<FMA>(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = mul_add::<FMA>(n, -0.693_359_375, clamped);
    let r = mul_add::<FMA>(n, 2.121_944_4e-4, r);
    let mut p = 1.987_569_15e-4;
    p = mul_add::<FMA>(p, r, 1.398_199_950_7e-3);
    p = mul_add::<FMA>(p, r, 8.333_451_907_3e-3);
    p = mul_add::<FMA>(p, r, 4.166_579_589_4e-2);
    p = mul_add::<FMA>(p, r, 1.666_666_545_9e-1);
    p = mul_add::<FMA>(p, r, 5.000_000_120_1e-1);
    let y = mul_add::<FMA>(p, r * r, r) + 1.0;
    // Times 2ⁿ, by adding n to the exponent: both ends were clamped so that it stays one.
    let y = f32::from_bits(y.to_bits().wrapping_add(shifted.to_bits() << 23));
    if x < LOWEST { 0.0 } else { y }
}

/// `tanh x` within 2e-7.
#[inline(always)]
pub(crate) fn tanh<const FMA: bool>(x: f32) -> f32 {
    1.0 - 2.0 / (exp::<FMA>(2.0 * x) + 1.0)
}

simd_fn! {
    /// Largest element; −∞ for none.
    pub(crate) fn max(x: &[f32]) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; 16];
        let (chunks, rest) = x.as_chunks::<16>();
        for chunk in chunks {
            for (lane, &value) in lanes.iter_mut().zip(chunk) {
                *lane = if value > *lane { value } else { *lane };
            }
        }
        let mut largest = lanes.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        for &value in rest {
            largest = largest.max(value);
        }
        let _ = FMA;
        largest
    }
}

simd_fn! {
    /// Replaces each element by `e^(element − shift)` and returns their sum.
    pub(crate) fn exp_sum(x: &mut [f32], shift: f32) -> f32 {
        let mut lanes = [0.0f32; 16];
        let (chunks, rest) = x.as_chunks_mut::<16>();
        for chunk in chunks {
            for (lane, value) in lanes.iter_mut().zip(chunk) {
                *value = exp::<FMA>(*value - shift);
                *lane += *value;
            }
        }
        let mut sum: f32 = lanes.iter().sum();
        for value in rest {
            *value = exp::<FMA>(*value - shift);
            sum += *value;
        }
        sum
    }
}

simd_fn! {
    /// `x ← x + y`.
    pub(crate) fn add(x: &mut [f32], y: &[f32]) {
        let _ = FMA;
        for (x, &y) in x.iter_mut().zip(y) {
            *x += y;
        }
    }
}

simd_fn! {
    /// The numbers of bfloat16's bits.
    pub(crate) fn widen(bits: &[u16], numbers: &mut [f32]) {
        let _ = FMA;
        for (number, &bits) in numbers.iter_mut().zip(bits) {
            *number = f32::from_bits(u32::from(bits) << 16);
        }
    }
}

simd_fn! {
    /// `x ← scale · x`.
    pub(crate) fn scale(x: &mut [f32], factor: f32) {
        let _ = FMA;
        for value in x {
            *value *= factor;
        }
    }
}

simd_fn! {
    /// `Σ xᵢ · yᵢ`.
    pub(crate) fn dot(x: &[f32], y: &[f32]) -> f32 {
        let mut lanes = [0.0f32; 16];
        let (x_chunks, x_rest) = x.as_chunks::<16>();
        let (y_chunks, y_rest) = y.as_chunks::<16>();
        for (x, y) in x_chunks.iter().zip(y_chunks) {
            for lane in 0..16 {
                lanes[lane] = mul_add::<FMA>(x[lane], y[lane], lanes[lane]);
            }
        }
        let mut sum: f32 = lanes.iter().sum();
        for (&x, &y) in x_rest.iter().zip(y_rest) {
            sum = mul_add::<FMA>(x, y, sum);
        }
        sum
    }
}

simd_fn! {
    /// `x ← cap · tanh(x / cap)`.
    pub(crate) fn soft_cap(x: &mut [f32], cap: f32) {
        let (inverse, _) = (1.0 / cap, FMA);
        for x in x {
            *x = cap * tanh::<FMA>(*x * inverse);
        }
    }
}

/// The derivative of [`soft_cap`] where its result is `capped`: `1 − (capped / cap)²`.
#[inline(always)]
pub(crate) fn cap_slope<const FMA: bool>(capped: f32, inverse_cap: f32) -> f32 {
    let tanh = capped * inverse_cap;
    mul_add::<FMA>(-tanh, tanh, 1.0)
}

simd_fn! {
    pub(crate) fn cap_slopes(capped: &[f32], cap: f32, slopes: &mut [f32]) {
        let inverse = 1.0 / cap;
        for (slope, &capped) in slopes.iter_mut().zip(capped) {
            *slope = cap_slope::<FMA>(capped, inverse);
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use std::sync::{Mutex, MutexGuard};

    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    /// Runs `test` at each level that this processor has.
    pub(crate) fn at_every_level(mut test: impl FnMut(Level)) {
        let _guard: MutexGuard<'_, ()> = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let widest = Level::detect();
        for level in [Level::Scalar, Level::Avx2, Level::Avx512] {
            if level <= widest {
                CURRENT.store(level as u8, Ordering::Relaxed);
                test(level);
            }
        }
        CURRENT.store(widest as u8, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::testing::at_every_level;
    use super::*;

    #[test]
    fn exp_is_right_to_two_units_in_the_last_place() {
        at_every_level(|level| {
            let mut x: Vec<f32> = (0..20_011).map(|i| -90.0 + i as f32 * (178.0 / 20_011.0)).collect();
            let expected: Vec<f64> = x.iter().map(|&v| f64::from(v).exp()).collect();
            let inputs = x.clone();
            exp_sum(&mut x, 0.0);
            for ((input, got), want) in inputs.iter().zip(&x).zip(expected) {
                if want < f64::from(f32::MIN_POSITIVE) {
                    assert!(f64::from(*got) <= 2.0 * f64::from(f32::MIN_POSITIVE), "{level:?}: exp({input}) = {got}");
                } else {
                    let relative = (f64::from(*got) / want - 1.0).abs();
                    assert!(relative < 2.4e-7, "{level:?}: exp({input}) = {got}, want {want}");
                }
            }
        });
    }

    #[test]
    fn exp_has_ends_and_passes_on_what_is_not_a_number() {
        at_every_level(|level| {
            // Whole vectors and a rest.
            let mut x = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 88.722_84, -87.4].repeat(7);
            exp_sum(&mut x, 0.0);
            for found in x.chunks(6) {
                assert!(found[0].is_nan(), "{level:?}: {found:?}");
                assert!(found[1] > 3.4e38 && found[4] > 3.4e38, "{level:?}: {found:?}");
                assert_eq!([found[2], found[3], found[5]], [0.0, 1.0, 0.0], "{level:?}");
            }
        });
    }

    #[test]
    fn tanh_is_right_to_two_ten_millionths() {
        at_every_level(|level| {
            let inputs: Vec<f32> = (0..20_011).map(|i| -100.0 + i as f32 * (200.0 / 20_011.0)).collect();
            for inputs in [inputs.clone(), inputs.iter().map(|x| x / 1000.0).collect()] {
                let mut capped = inputs.clone();
                soft_cap(&mut capped, 1.0);
                for (input, got) in inputs.iter().zip(&capped) {
                    let error = f64::from(*got) - f64::from(*input).tanh();
                    assert!(error.abs() < 2e-7, "{level:?}: tanh({input}) = {got}");
                }
            }
        });
    }

    #[test]
    fn reductions_cover_whole_vectors_and_the_rest() {
        at_every_level(|level| {
            for len in [0, 1, 15, 16, 17, 67] {
                let x: Vec<f32> = (0..len).map(|i| (i as f32 * 0.37).sin()).collect();
                let y: Vec<f32> = (0..len).map(|i| (i as f32 * 0.11).cos()).collect();
                let want: f32 = x.iter().zip(&y).map(|(x, y)| x * y).sum();
                assert!((dot(&x, &y) - want).abs() < 1e-5, "{level:?} {len}");
                let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                assert_eq!(max(&x), largest, "{level:?} {len}");
            }
        });
    }
}
