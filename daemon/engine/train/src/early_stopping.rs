//! The best validation so far, and when to stop waiting for a better one: as transformers' `EarlyStoppingCallback` and
//! `_determine_best_metric` (after Prechelt 1998, "Early Stopping: But When?").

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::evaluate::Validation;

/// What a validation is judged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
pub enum Metric {
    #[default]
    #[serde(rename = "eval_loss")]
    Loss,
    #[serde(rename = "eval_perplexity")]
    Perplexity,
    #[serde(rename = "eval_token_accuracy")]
    TokenAccuracy,
}

impl Metric {
    pub(crate) const ALL: [Self; 3] = [Self::Loss, Self::Perplexity, Self::TokenAccuracy];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Loss => "eval_loss",
            Self::Perplexity => "eval_perplexity",
            Self::TokenAccuracy => "eval_token_accuracy",
        }
    }

    pub(crate) fn greater_is_better(self) -> bool {
        self == Self::TokenAccuracy
    }

    pub(crate) fn of(self, found: &Validation) -> f64 {
        match self {
            Self::Loss => found.loss,
            Self::Perplexity => found.loss.exp(),
            Self::TokenAccuracy => found.token_accuracy,
        }
    }
}

/// The rule of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct EarlyStopping {
    pub(crate) greater_is_better: bool,
    /// Validations in a row without a better one that end the run.
    pub(crate) patience: Option<u64>,
    /// By how much a validation must be better to be worth waiting for more.
    pub(crate) threshold: f64,
}

/// The best validation of a run so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    pub step: u64,
    pub value: f64,
    pub loss: f64,
    /// Validations since the last that was better by more than the threshold.
    pub waited: u64,
}

impl EarlyStopping {
    /// Takes in what a validation is judged by, and its loss; true where it is the best so far.
    pub(crate) fn observe(&self, best: &mut Option<Best>, step: u64, value: f64, loss: f64) -> bool {
        let new = Best { step, value, loss, waited: 0 };
        let Some(known) = best else {
            *best = Some(new);
            return true;
        };
        let better = if self.greater_is_better { value > known.value } else { value < known.value };
        let waited = if better && (value - known.value).abs() > self.threshold { 0 } else { known.waited + 1 };
        *known = if better { Best { waited, ..new } } else { Best { waited, ..*known } };
        better
    }

    pub(crate) fn ends(&self, best: Option<&Best>) -> bool {
        self.patience.zip(best).is_some_and(|(patience, best)| best.waited >= patience)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// Sequences of metrics through transformers (`scripts/golden/early_stopping.py`).
    #[test]
    fn runs_end_where_those_of_transformers_end() {
        let text = include_str!("../fixtures/early_stopping.json");
        let cases: Vec<Value> = serde_json::from_str(text).unwrap();
        assert!(cases.len() >= 20);
        for case in cases {
            let rule = EarlyStopping {
                greater_is_better: case["greater_is_better"] == true,
                patience: case["patience"].as_u64(),
                threshold: case["threshold"].as_f64().unwrap(),
            };
            let (mut best, mut end) = (None, None);
            for (step, value) in (1..).zip(case["values"].as_array().unwrap()) {
                let value = value.as_f64().unwrap();
                rule.observe(&mut best, step, value, value);
                if rule.ends(best.as_ref()) {
                    end = Some(step);
                    break;
                }
            }
            assert_eq!(end, case["end"].as_u64(), "{case}");
            assert_eq!(best.map(|best| best.step), case["best"].as_u64(), "{case}");
        }
    }
}
