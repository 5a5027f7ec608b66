//! Rows token by token, with the loss mask.

use justtrain_worker_api::{DataFile, PreviewRow, PreviewToken, Problem};

use crate::{EncodeOptions, Encoder, End, read_conversations};

/// `rows` usable rows from the `offset`-th on.
pub fn preview(
    data: &DataFile,
    encoder: &Encoder,
    options: &EncodeOptions,
    offset: usize,
    rows: usize,
) -> Result<Vec<PreviewRow>, Problem> {
    let loaded = read_conversations(data)?;
    if loaded.conversations.is_empty() {
        return Err(loaded.problems.into_iter().next().expect("a row that cannot be used has its problem"));
    }
    let conversations = loaded.conversations.iter().skip(offset).take(rows);
    conversations
        .map(|conversation| {
            let sample = encoder.encode(conversation, options)?;
            let tokens = sample.ids.iter().zip(&sample.target).map(|(&id, &target)| PreviewToken {
                id,
                text: encoder.tokenizer.token_text(id),
                target,
            });
            Ok(PreviewRow {
                row: conversation.row,
                rendered: encoder.template.render(conversation.into(), End::Complete)?,
                tokens: tokens.collect(),
            })
        })
        .collect()
}
