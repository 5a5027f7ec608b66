//! Rows token by token, with the loss mask; of a pair both answers.

use std::borrow::Cow;

use justtrain_worker_api::{DataFile, PreviewRow, PreviewToken, Problem};

use crate::{EncodeOptions, Encoder, Judgement, Message, read_conversations};

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
    let mut previews = Vec::new();
    for conversation in loaded.conversations.iter().skip(offset).take(rows) {
        let samples = encoder.encode_row(conversation, options)?;
        // Without a template.
        let text = match conversation.judgement {
            Judgement::Plain => Some(conversation.turns[0].text()),
            Judgement::Label => Some(conversation.turns.iter().map(Message::text).collect::<Vec<_>>().join("\n")),
            Judgement::None | Judgement::Over(_) | Judgement::Good(_) => None,
        };
        let pieces =
            if text.is_some() { vec![Cow::Borrowed(conversation); samples.len()] } else { conversation.answers() };
        for (sample, answer) in samples.iter().zip(pieces) {
            let source = sample.source.iter().map(|&id| (id, false));
            let tokens = source.chain(sample.ids.iter().copied().zip(sample.target.iter().copied()));
            let tokens = tokens.map(|(id, target)| PreviewToken { id, text: encoder.tokenizer.token_text(id), target });
            previews.push(PreviewRow {
                row: conversation.row,
                rendered: match &text {
                    Some(text) => text.clone(),
                    None => encoder.rendered(answer.as_ref().into())?,
                },
                tokens: tokens.collect(),
                chosen: matches!(conversation.judgement, Judgement::Over(_) | Judgement::Good(_))
                    .then_some(!sample.rejected),
            });
        }
    }
    Ok(previews)
}
