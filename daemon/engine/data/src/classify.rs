//! Texts and their classes to what a classifier learns from.

use std::collections::BTreeSet;

use justtrain_worker_api::{Problem, ProblemCode};

use crate::{Class, Conversation, Judgement, Message, Sample, Tokenizer};

/// The class of a row, where its format has one.
pub fn label_of(row: &Conversation) -> Option<String> {
    let label = row.turns.last().filter(|_| row.judgement == Judgement::Label)?;
    Some(label.text())
}

/// Every class of some rows once: numbers by their value, texts by their letters.
pub fn labels_of<'a>(rows: impl IntoIterator<Item = &'a Conversation>) -> Vec<String> {
    let labels: BTreeSet<String> = rows.into_iter().filter_map(label_of).collect();
    let mut labels: Vec<String> = labels.into_iter().collect();
    labels.sort_by_key(|label| label.parse::<i64>().map_or((true, 0), |number| (false, number)));
    labels
}

/// The tokens of a row's text or texts with the marks that the tokenizer puts around them, at most `cutoff_len` together: of a
/// pair the longer text is cut first, as in transformers. `InvalidValue` where the class is none of `labels`.
pub fn encode_class(
    tokenizer: &Tokenizer,
    row: &Conversation,
    labels: &[String],
    cutoff_len: usize,
) -> Result<Sample, Problem> {
    let label = label_of(row).unwrap_or_default();
    let at = |problem: Problem| problem.file(row.file.display()).row(row.row);
    let Some(class) = labels.iter().position(|known| *known == label) else {
        return Err(at(unknown(&label, labels)));
    };
    let texts: Vec<String> = row.turns.iter().take(row.turns.len() - 1).map(Message::text).collect();
    let (ids, types) = tokenizer.encode_marked(&texts[0], texts.get(1).map(String::as_str), cutoff_len).map_err(at)?;
    let class = Some(Class { label: class as u32, types });
    Ok(Sample { target: vec![false; ids.len()], ids, row: row.row, rejected: false, class })
}

fn unknown(label: &str, labels: &[String]) -> Problem {
    Problem::error(
        ProblemCode::InvalidValue,
        "no row that is trained on has this label, so it cannot be learnt",
        "训练数据中没有这个标签，因此无法学到它",
    )
    .key("label")
    .found(label)
    .expected(labels.join(" | "))
    .fix("correct the label, or add rows of it to the training data", "请更正该标签，或在训练数据中加入这一类")
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;

    fn row(label: &str) -> Conversation {
        Conversation {
            turns: vec![Message::new("user", "text"), Message::new("assistant", label)],
            tools: Vec::new(),
            documents: Vec::new(),
            judgement: Judgement::Label,
            file: Arc::from(Path::new("rows.jsonl")),
            row: 1,
        }
    }

    #[test]
    fn labels_are_in_the_order_of_numbers_and_letters() {
        let labels = |labels: &[&str]| labels_of(&labels.iter().map(|label| row(label)).collect::<Vec<_>>());
        assert_eq!(labels(&["10", "9", "-1", "9"]), ["-1", "9", "10"]);
        assert_eq!(labels(&["no", "yes", "2", "no"]), ["2", "no", "yes"]);
    }
}
