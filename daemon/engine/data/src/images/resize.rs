//! PIL's `Image.resize` of 8-bit RGB to the last bit (`libImaging/Resample.c`): first along rows, then along columns, with
//! weights in fixed point. Where an image shrinks, the filter grows with it, so that nothing is skipped.
//!
//! This is the order of Pillow 12 and all before it. Pillow 13 begins with the columns of tall images, and the level between
//! is rounded elsewhere: some levels of 255 differ by one.

use image::RgbImage;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    Bilinear,
    Bicubic,
}

impl Filter {
    /// Beyond this distance it is 0.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn at(self, distance: f64) -> f64 {
        /// Keys' parameter, as PIL has it.
        const A: f64 = -0.5;
        let x = distance.abs();
        match self {
            _ if x >= self.support() => 0.0,
            Self::Bilinear => 1.0 - x,
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
        }
    }
}

/// Bits behind the point.
const PRECISION: u32 = 32 - 8 - 2;

/// The levels that an output level is made of: the first of them, and a weight for each.
struct Window {
    first: usize,
    weights: Vec<i32>,
}

pub(super) fn resize(image: &RgbImage, width: u32, height: u32, filter: Filter) -> RgbImage {
    let (from_width, from_height) = image.dimensions();
    let mut image = image.clone();
    if width != from_width {
        let windows = windows(from_width, width, filter);
        image = RgbImage::from_fn(width, from_height, |x, y| {
            let window = &windows[x as usize];
            sum(window, |at| image.get_pixel(at as u32, y).0)
        });
    }
    if height != from_height {
        let windows = windows(from_height, height, filter);
        image = RgbImage::from_fn(width, height, |x, y| {
            let window = &windows[y as usize];
            sum(window, |at| image.get_pixel(x, at as u32).0)
        });
    }
    image
}

fn sum(window: &Window, pixel: impl Fn(usize) -> [u8; 3]) -> image::Rgb<u8> {
    let mut sums = [1i32 << (PRECISION - 1); 3];
    for (at, &weight) in (window.first..).zip(&window.weights) {
        for (sum, level) in sums.iter_mut().zip(pixel(at)) {
            *sum += i32::from(level) * weight;
        }
    }
    image::Rgb(sums.map(|sum| (sum >> PRECISION).clamp(0, 255) as u8))
}

fn windows(from: u32, to: u32, filter: Filter) -> Vec<Window> {
    let scale = f64::from(from) / f64::from(to);
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    let window = |at: u32| {
        let center = (f64::from(at) + 0.5) * scale;
        // Both are cut, not rounded, and never below 0.
        let first = (center - support + 0.5).max(0.0) as usize;
        let end = ((center + support + 0.5) as usize).min(from as usize);
        let weights: Vec<f64> =
            (first..end).map(|at| filter.at((at as f64 - center + 0.5) * (1.0 / stretch))).collect();
        let total: f64 = weights.iter().sum();
        let fixed = |weight: f64| (weight / total * f64::from(1u32 << PRECISION)).round() as i32;
        Window { first, weights: weights.into_iter().map(fixed).collect() }
    };
    (0..to).map(window).collect()
}
