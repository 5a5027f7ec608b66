//! The slanted triangular rates of ULMFiT (Howard & Ruder 2018, arXiv 1801.06146, equation 3): a short rise, which is
//! their warm-up, and a long fall.

#[derive(Debug, Clone, PartialEq)]
pub struct SlantedTriangular {
    /// Share of all steps in which the rate rises.
    pub cut_frac: f64,
    /// The highest rate is so many times the lowest.
    pub ratio: f64,
}

impl SlantedTriangular {
    pub(super) fn factor(&self, step: u64, total_steps: u64) -> f64 {
        let (step, cut) = (step as f64, (total_steps as f64 * self.cut_frac).floor().max(1.0));
        let progress = if step < cut { step / cut } else { 1.0 - (step - cut) / (cut * (1.0 / self.cut_frac - 1.0)) };
        // Where `cut` was rounded down, the paper's line meets the axis before the last step.
        (1.0 + progress.max(0.0) * (self.ratio - 1.0)) / self.ratio
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rises_falls_and_never_goes_below_its_least() {
        let shape = SlantedTriangular { cut_frac: 0.1, ratio: 32.0 };
        let at = |step| shape.factor(step, 100);
        assert_eq!([at(0), at(5), at(10)], [1.0 / 32.0, (1.0 + 15.5) / 32.0, 1.0]);
        assert!((at(55) - (1.0 + 15.5) / 32.0).abs() < 1e-12 && (at(100) - 1.0 / 32.0).abs() < 1e-12);
        // A tenth of 19 steps is one step, whose triangle would end at step 10.
        assert_eq!(shape.factor(18, 19), 1.0 / 32.0);
        assert_eq!(shape.factor(1, 3), 1.0);
    }
}
