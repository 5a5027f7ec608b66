//! Learning-rate schedules as functions of the step: nothing to save, nothing to restore. The formulas are those of
//! transformers (`optimization.py`).

use std::f64::consts::PI;

use crate::recipe::SchedulerType;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    pub kind: SchedulerType,
    /// The highest rate.
    pub learning_rate: f64,
    pub warmup_steps: u64,
    pub total_steps: u64,
}

impl Schedule {
    /// The rate of the step with this index, from 0. With a warm-up the first rate is 0.
    pub fn learning_rate(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.learning_rate * step as f64 / self.warmup_steps as f64;
        }
        let decaying = self.total_steps.saturating_sub(self.warmup_steps).max(1);
        let progress = ((step - self.warmup_steps) as f64 / decaying as f64).min(1.0);
        self.learning_rate
            * match self.kind {
                SchedulerType::Constant => 1.0,
                SchedulerType::Linear => 1.0 - progress,
                SchedulerType::Cosine => 0.5 * (1.0 + (PI * progress).cos()),
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_starts_peaks_and_ends_where_it_should() {
        let schedule = |kind| Schedule { kind, learning_rate: 2.0, warmup_steps: 4, total_steps: 12 };
        let at = |kind, step| schedule(kind).learning_rate(step);
        for kind in [SchedulerType::Constant, SchedulerType::Linear, SchedulerType::Cosine] {
            assert_eq!([at(kind, 0), at(kind, 1), at(kind, 4)], [0.0, 0.5, 2.0]);
        }
        assert_eq!(at(SchedulerType::Constant, 11), 2.0);
        assert_eq!([at(SchedulerType::Linear, 8), at(SchedulerType::Linear, 12)], [1.0, 0.0]);
        assert!((at(SchedulerType::Cosine, 8) - 1.0).abs() < 1e-12);
        assert!(at(SchedulerType::Cosine, 12).abs() < 1e-12);
        let none = Schedule { warmup_steps: 0, ..schedule(SchedulerType::Cosine) };
        assert_eq!(none.learning_rate(0), 2.0);
    }
}
