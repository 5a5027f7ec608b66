//! Conversations to token ids with a loss mask.

use justtrain_worker_api::{Problem, ProblemCode};

use crate::{ChatTemplate, Conversation, Tokenizer};

/// Token ids, and for each whether the model is trained to predict it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    pub ids: Vec<u32>,
    pub target: Vec<bool>,
    /// 1-based row in the data file.
    pub row: u64,
}

impl Sample {
    /// Tokens that count for the loss. The first token of a sample is predicted from nothing and never counts.
    pub fn targets(&self) -> usize {
        self.target.iter().skip(1).filter(|&&target| target).count()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Longest sample in tokens; the rest is cut off at its end.
    pub cutoff_len: usize,
    /// The prompt's tokens count for the loss too.
    pub train_on_prompt: bool,
    /// Of several answers only the last one counts.
    pub mask_history: bool,
}

/// Template and tokenizer of one model.
pub struct Encoder {
    pub tokenizer: Tokenizer,
    pub template: ChatTemplate,
}

impl Encoder {
    /// Renders the whole conversation once and tokenises it once, so that the ids are those of the whole text. Targets
    /// are the tokens of each answer and of the mark that ends its turn: what the model must say by itself.
    ///
    /// `AnswerCut` where `cutoff_len` leaves no target.
    pub fn encode(&self, conversation: &Conversation, options: &EncodeOptions) -> Result<Sample, Problem> {
        let at_row = |problem: Problem| problem.row(conversation.row);
        let turns = &conversation.turns;
        let text = self.template.render(turns, false).map_err(at_row)?;
        let answers = self.answer_ranges(conversation, &text).map_err(at_row)?;
        let encoding = self.tokenizer.encode(&text).map_err(at_row)?;
        let counted = if options.mask_history { &answers[answers.len() - 1..] } else { &answers[..] };
        let mut ids = encoding.ids;
        let mut target: Vec<bool> = encoding
            .offsets
            .iter()
            .map(|&(start, end)| {
                options.train_on_prompt || counted.iter().any(|range| start >= range.start && end <= range.end)
            })
            .collect();
        let whole = ids.len();
        ids.truncate(options.cutoff_len);
        target.truncate(options.cutoff_len);
        let sample = Sample { ids, target, row: conversation.row };
        if sample.targets() == 0 {
            return Err(Problem::warning(
                ProblemCode::AnswerCut,
                "cutoff_len cuts the whole answer of this row away; the row is left out",
                "cutoff_len 把该行的回答全部截掉了，该行将被忽略",
            )
            .row(conversation.row)
            .key("cutoff_len")
            .found(format!("{whole} tokens"))
            .expected(format!("an answer within the first {} tokens", options.cutoff_len))
            .fix("raise cutoff_len, or shorten the row", "请增大 cutoff_len，或缩短该行"));
        }
        Ok(sample)
    }

    /// Token ids of a conversation that waits for the assistant's answer.
    pub fn encode_prompt(&self, turns: &[justtrain_worker_api::Turn]) -> Result<Vec<u32>, Problem> {
        Ok(self.tokenizer.encode(&self.template.render(turns, true)?)?.ids)
    }

    /// Bytes of `text` that each answer takes, from where the assistant begins to the mark that ends its turn.
    fn answer_ranges(&self, conversation: &Conversation, text: &str) -> Result<Vec<std::ops::Range<usize>>, Problem> {
        let turns = &conversation.turns;
        let mut ranges = Vec::new();
        for (index, _) in turns.iter().enumerate().filter(|(_, turn)| turn.role == "assistant") {
            let before = self.template.render(&turns[..index], true)?;
            let after = self.template.render(&turns[..=index], false)?;
            if !text.starts_with(&before) || !text.starts_with(&after) {
                return Err(Problem::error(
                    ProblemCode::ChatTemplate,
                    "the chat template changes earlier turns when later ones are added, so answers cannot be found",
                    "对话模板在增加轮次时会改变之前的内容，无法定位回答",
                ));
            }
            // White space after the mark belongs to the next turn: the model never has to say it.
            ranges.push(before.len()..after.trim_end().len());
        }
        Ok(ranges)
    }
}
