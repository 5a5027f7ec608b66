//! How each task fares on its held-out rows, by the metric that it names.

use std::ops::Range;

use justtrain_data::{Conversation, Encoder, Sample};
use justtrain_model::Decoder;
use justtrain_worker_api::{Event, Problem, ProblemCode, TaskScore};

use crate::evaluate::{Validation, exact_match, validate};
use crate::objectives::{Background, Objective};
use crate::recipe::{BestMetric, Recipe, TaskMetric, TaskPlan};

/// The rows that a recipe's tasks hold out.
pub(crate) struct HeldOut<'a> {
    pub(crate) tasks: &'a [TaskPlan],
    /// Where each task's samples are among those of all.
    pub(crate) ranges: &'a [Range<usize>],
    /// The rows themselves, of tasks whose answers are to be compared.
    pub(crate) asked: &'a [Vec<Conversation>],
    pub(crate) encoder: &'a Encoder,
}

/// What a validation found of a task.
pub(crate) struct Fared {
    pub(crate) task: usize,
    validation: Validation,
    exact_match: Option<f64>,
}

impl Fared {
    /// Not a number where a metric was not asked for.
    pub(crate) fn value(&self, metric: TaskMetric) -> f64 {
        match metric {
            TaskMetric::Loss => self.validation.loss,
            TaskMetric::Perplexity => self.validation.perplexity,
            TaskMetric::TokenAccuracy => self.validation.token_accuracy,
            TaskMetric::ExactMatch => self.exact_match.unwrap_or(f64::NAN),
        }
    }
}

impl HeldOut<'_> {
    /// Of each task with held-out rows, which are a part of `samples`.
    pub(crate) fn validate(
        &self,
        decoder: &Decoder,
        samples: &[Sample],
        objective: &dyn Objective,
        background: &Background,
    ) -> Result<Vec<Fared>, Problem> {
        let ranges = if self.tasks.is_empty() { &[] } else { self.ranges };
        let held_out = ranges.iter().enumerate().filter(|(_, range)| !range.is_empty());
        let fared = |(task, range): (usize, &Range<usize>)| {
            let validation = validate(decoder, samples, range.clone(), objective, background);
            let longest = samples[range.clone()].iter().map(Sample::targets).max().unwrap_or(0);
            let asked = Some(&self.asked[task]).filter(|rows| !rows.is_empty());
            let exact_match = asked.map(|rows| exact_match(self.encoder, decoder, rows, longest)).transpose()?;
            Ok(Fared { task, validation, exact_match })
        };
        held_out.map(fared).collect()
    }

    /// What the validation is judged by, of all rows or of one task's.
    pub(crate) fn best(&self, recipe: &Recipe, whole: &Validation, fared: &[Fared]) -> f64 {
        match recipe.best_by() {
            Some(BestMetric::OfTask { task, metric }) => {
                fared.iter().find(|fared| fared.task == task).map_or(f64::NAN, |fared| fared.value(metric))
            }
            Some(BestMetric::Whole(metric)) => metric.of(whole),
            None => whole.loss,
        }
    }

    /// What is told of them.
    pub(crate) fn event(&self, step: u64, fared: &[Fared]) -> Event {
        let score = |fared: &Fared| {
            let TaskPlan { name, metric, .. } = &self.tasks[fared.task];
            // A reward model says nothing of tokens.
            let of_tokens = fared.validation.perplexity > 0.0;
            TaskScore {
                name: name.clone(),
                loss: fared.validation.loss,
                token_accuracy: of_tokens.then_some(fared.validation.token_accuracy),
                weight: None,
                metric: Some(metric.name().to_owned()),
                value: Some(fared.value(*metric)),
            }
        };
        Event::Tasks { step, validation: true, tasks: fared.iter().map(score).collect() }
    }
}

/// The task by which the best validation is told has nothing held out.
pub(crate) fn nothing_to_judge_by(recipe: &Recipe, ranges: &[Range<usize>]) -> Option<Problem> {
    recipe.early_stopping()?;
    let Some(BestMetric::OfTask { task, .. }) = recipe.best_by() else { return None };
    let name = &recipe.tasks[task].name;
    ranges[task].is_empty().then(|| {
        Problem::error(
            ProblemCode::InvalidValue,
            format!("task \"{name}\" has no held-out rows that the best validation could be told by"),
            format!("任务“{name}”没有留出的数据，无法用来判断最好的验证"),
        )
        .key("metric_for_best_model")
        .found("0 held-out rows")
        .expected("at least one")
        .fix(
            "give the task more rows or set val_size, or judge by eval_loss",
            "请增加该任务的数据或设置 val_size，或改用 eval_loss",
        )
    })
}
