//! What a data file holds, before anything is trained on it.

use justtrain_worker_api::{DataFile, DataReport, Problem, Sample as Understood, Turn};

use crate::{Conversation, EncodeOptions, Encoder, Judgement, Sample, read_conversations};

/// Problems listed; the rest are counted.
const LISTED: usize = 100;

/// Reads the whole file. With an encoder, tokens are counted and rows that `cutoff_len` empties are found too.
pub fn check(
    data: &DataFile,
    encoder: Option<&Encoder>,
    cutoff_len: usize,
    mut progress: impl FnMut(u64, u64),
) -> Result<DataReport, Problem> {
    let loaded = read_conversations(data)?;
    let mut problems = loaded.problems;
    let rows = loaded.conversations.len() as u64;
    let mut report = DataReport {
        format: loaded.format,
        rows: loaded.rows,
        usable_rows: rows,
        problems: Vec::new(),
        more_problems: 0,
        tokens: None,
        target_tokens: None,
        longest_row_tokens: None,
        cut_rows: None,
        first_row: loaded.conversations.first().map(understood),
    };
    if let Some(encoder) = encoder {
        let whole = EncodeOptions { cutoff_len: usize::MAX, train_on_prompt: false, mask_history: false };
        let cut = EncodeOptions { cutoff_len, ..whole };
        let (mut tokens, mut targets, mut longest, mut cut_rows) = (0, 0, 0, 0);
        for (done, conversation) in (1u64..).zip(&loaded.conversations) {
            let encoded = encoder.encode_row(conversation, &whole).and_then(|samples| {
                let len = samples.iter().map(Sample::tokens).max().unwrap_or(0);
                longest = longest.max(len as u64);
                if len <= cutoff_len {
                    return Ok(samples);
                }
                cut_rows += 1;
                encoder.encode_row(conversation, &cut)
            });
            match encoded {
                Ok(samples) => {
                    tokens += samples.iter().map(|sample| sample.tokens() as u64).sum::<u64>();
                    targets += samples.iter().map(|sample| sample.targets() as u64).sum::<u64>();
                }
                Err(problem) => {
                    report.usable_rows -= 1;
                    problems.push(problem);
                }
            }
            progress(done, rows);
        }
        report.tokens = Some(tokens);
        report.target_tokens = Some(targets);
        report.longest_row_tokens = Some(longest);
        report.cut_rows = Some(cut_rows);
    }
    report.more_problems = problems.len().saturating_sub(LISTED) as u64;
    problems.truncate(LISTED);
    report.problems = problems;
    Ok(report)
}

/// The turns, with the rejected answer of a pair after the chosen one.
fn understood(row: &Conversation) -> Understood {
    let rejected = match &row.judgement {
        Judgement::Over(rejected) => Some(Turn { role: "rejected".to_owned(), content: rejected.text() }),
        _ => None,
    };
    Understood { turns: row.turns.iter().map(Turn::from).chain(rejected).collect() }
}
