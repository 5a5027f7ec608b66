//! The labels of rows for a classifier.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use justtrain_worker_api::{Problem, ProblemCode};

use crate::{Conversation, Judgement};

/// Labels, each once; a label's number is its place in the list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Labels(Vec<String>);

impl Labels {
    /// In the order in which a model has learnt them.
    pub fn new(names: Vec<String>) -> Self {
        Self(names)
    }

    /// Those of the rows that have one: whole numbers first and by number, then the others by their characters.
    pub fn of<'a>(rows: impl IntoIterator<Item = &'a Conversation>) -> Self {
        let labelled = rows.into_iter().filter(|row| row.judgement == Judgement::Label);
        let labels: BTreeSet<String> = labelled.map(Conversation::label).collect();
        let mut labels: Vec<String> = labels.into_iter().collect();
        labels.sort_by(|a, b| in_order(a, b));
        Self(labels)
    }

    pub fn names(&self) -> &[String] {
        &self.0
    }

    /// A row's label as a number. `InvalidValue` for one that is not in the list, as a held-out row can have.
    pub fn number(&self, row: &Conversation) -> Result<u32, Problem> {
        let label = row.label();
        self.0.iter().position(|name| *name == label).map(|number| number as u32).ok_or_else(|| {
            Problem::error(
                ProblemCode::InvalidValue,
                "no row to train on has the label of this row",
                "训练数据中没有该行的标签",
            )
            .file(row.file.display())
            .row(row.row)
            .key("label")
            .found(&label)
            .expected(format!("one of {}", self.listed()))
            .fix(
                "correct the label, add rows with it to the training data, or delete the row",
                "请更正标签，在训练数据中补充该标签的行，或删除该行",
            )
        })
    }

    /// A list for a person; of many labels the first ones.
    fn listed(&self) -> String {
        const SHOWN: usize = 20;
        let more = if self.0.len() > SHOWN { ", …" } else { "" };
        self.0.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ") + more
    }
}

fn in_order(a: &str, b: &str) -> Ordering {
    let number = |label: &str| label.parse::<i64>().ok();
    match (number(a), number(b)) {
        (Some(of_a), Some(of_b)) => of_a.cmp(&of_b).then_with(|| a.cmp(b)),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => a.cmp(b),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::Message;

    fn rows(labels: &[&str]) -> Vec<Conversation> {
        let row = |(row, label): (u64, &&str)| Conversation {
            turns: vec![Message::new("user", "a"), Message::new("assistant", *label)],
            tools: Vec::new(),
            documents: Vec::new(),
            image: None,
            judgement: Judgement::Label,
            file: Path::new("data.json").into(),
            row,
        };
        (1..).zip(labels).map(row).collect()
    }

    #[test]
    fn labels_are_sorted() {
        let labels = Labels::of(&rows(&["10", "9", "-1", "9"]));
        assert_eq!(labels.names(), ["-1", "9", "10"]);
        let labels = Labels::of(&rows(&["好", "neutral", "7", "bad", "好"]));
        assert_eq!(labels.names(), ["7", "bad", "neutral", "好"]);
    }

    #[test]
    fn a_held_out_label_that_training_rows_lack_is_a_problem() {
        let labels = Labels::of(&rows(&["good", "bad"]));
        let held_out = rows(&["good", "goood"]);
        assert_eq!(labels.number(&held_out[0]).unwrap(), 1);
        let problem = labels.number(&held_out[1]).unwrap_err();
        assert_eq!((problem.row, problem.key.as_deref()), (Some(2), Some("label")));
        assert_eq!((problem.found.as_deref(), problem.expected.as_deref()), (Some("goood"), Some("one of bad, good")));
    }
}
