//! Conversations to token ids with a loss mask.

use std::iter;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use justtrain_worker_api::{Problem, ProblemCode};

use crate::{Chat, ChatTemplate, Conversation, End, ImageProcessor, Judgement, Labels, Message, Pixels, Tokenizer};

/// Token ids, and for each whether the model is trained to predict it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sample {
    pub ids: Vec<u32>,
    pub target: Vec<bool>,
    /// What an encoder reads, where there is one; the ids are a decoder's then, from the token that it starts with.
    pub source: Vec<u32>,
    /// 1-based row in the data file.
    pub row: u64,
    /// The answer is not to be given: the worse one of a pair, or one that is said to be bad.
    pub rejected: bool,
    /// What it is, where that is what the model learns to say.
    pub class: Option<Class>,
}

/// The class of a sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Class {
    /// By its place among the labels.
    pub label: u32,
    /// Of each token which of a pair's texts it is in; empty where there is one text.
    pub types: Vec<u32>,
    /// What is read in place of a text; the sample's ids say nothing then.
    pub image: Option<Arc<Pixels>>,
}

impl Sample {
    /// All that the model reads.
    pub fn tokens(&self) -> usize {
        self.ids.len() + self.source.len()
    }

    /// Tokens that count for the loss; of a sample with a class that is one. The first token of a sample is predicted from
    /// nothing and never counts.
    pub fn targets(&self) -> usize {
        if self.class.is_some() {
            return 1;
        }
        self.target.iter().skip(1).filter(|&&target| target).count()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Longest sample in tokens; the rest is cut off at its end. Of a source and its target together, the longer one is cut first.
    pub cutoff_len: usize,
    /// The prompt's tokens count for the loss too.
    pub train_on_prompt: bool,
    /// Of several answers only the last one counts.
    pub mask_history: bool,
}

/// How one model reads: template and tokenizer, or what it makes of images.
pub struct Encoder {
    pub tokenizer: Tokenizer,
    pub template: ChatTemplate,
    pub images: Option<Images>,
    pub seq2seq: Option<Seq2Seq>,
}

/// Of a model whose encoder reads a source and whose decoder says the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seq2Seq {
    /// The token that every target begins with.
    pub start: u32,
    /// That which ends a source and a target.
    pub end: u32,
}

/// Of a model that reads images.
pub struct Images {
    pub processor: ImageProcessor,
    /// Pixels along a side of the square that the model reads, and the tokens that it becomes.
    pub size: usize,
    pub tokens: usize,
}

impl Images {
    /// An image in the model's size.
    pub fn read(&self, image: &Path) -> Result<Pixels, Problem> {
        let pixels = self.processor.read(image)?;
        if [pixels.height, pixels.width] == [self.size; 2] {
            return Ok(pixels);
        }
        Err(Problem::error(
            ProblemCode::ShapeMismatch,
            "the model's image settings give another size than the model reads",
            "模型的图像设置与模型读取的尺寸不一致",
        )
        .file(image.display())
        .found(format!("{} × {}", pixels.width, pixels.height))
        .expected(format!("{0} × {0}", self.size))
        .fix(
            "set size in preprocessor_config.json to what config.json says",
            "请将 preprocessor_config.json 的 size 设为 config.json 中的尺寸",
        ))
    }
}

impl Encoder {
    /// The conversation as a text.
    pub fn rendered(&self, chat: Chat<'_>) -> Result<String, Problem> {
        match self.seq2seq {
            None => self.template.render(chat, End::Complete),
            Some(_) => Ok(plain(chat.messages)),
        }
    }

    /// Renders the whole conversation once and tokenises it once, so that the ids are those of the whole text. Targets
    /// are the tokens of each answer and of the mark that ends its turn: what the model must say by itself.
    ///
    /// `AnswerCut` where `cutoff_len` leaves no target; `ChatTemplate` where the template refuses the conversation.
    pub fn encode(&self, conversation: &Conversation, options: &EncodeOptions) -> Result<Sample, Problem> {
        match self.seq2seq {
            None => self.encode_turns(conversation, options),
            Some(stacks) => self.encode_pair(stacks, conversation, options),
        }
        .map_err(|problem| problem.file(conversation.file.display()).row(conversation.row))
    }

    /// The samples of a row: one, or of a pair the chosen answer and the rejected one. Of what a row judges only the
    /// last answer counts.
    pub fn encode_row(&self, row: &Conversation, options: &EncodeOptions) -> Result<Vec<Sample>, Problem> {
        match row.judgement {
            Judgement::None => return self.encode(row, options).map(|sample| vec![sample]),
            Judgement::Plain => return self.encode_text(row, options),
            Judgement::Label => {
                // Whoever trains on rows knows the labels of all of them.
                return self.encode_labelled(row, &Labels::of([row]), options.cutoff_len).map(|sample| vec![sample]);
            }
            Judgement::Over(_) | Judgement::Good(_) => {}
        }
        let options = EncodeOptions { mask_history: true, train_on_prompt: false, ..*options };
        let mut samples =
            row.answers().iter().map(|answer| self.encode(answer, &options)).collect::<Result<Vec<_>, _>>()?;
        let last = samples.last_mut().expect("a row has an answer");
        last.rejected = row.judgement != Judgement::Good(true);
        Ok(samples)
    }

    /// What a classifier reads of a row, and its label: of a text or a pair the tokens with the marks that the tokenizer puts
    /// around them, at most `cutoff_len` together, of a pair the longer text cut first; or an image. `InvalidValue` where the
    /// label is none of `labels`, or the model does not read what the row has.
    pub fn encode_labelled(&self, row: &Conversation, labels: &Labels, cutoff_len: usize) -> Result<Sample, Problem> {
        let label = labels.number(row)?;
        let at = |problem: Problem| problem.file(row.file.display()).row(row.row);
        let (ids, types, image) = match (&row.image, &self.images, row.texts()) {
            (Some(image), Some(images), _) => {
                let pixels = images.read(image).map_err(at)?;
                (vec![0; images.tokens], Vec::new(), Some(Arc::new(pixels)))
            }
            (None, None, Some((text, pair))) => {
                let (ids, types) = self.tokenizer.encode_marked(&text, pair.as_deref(), cutoff_len).map_err(at)?;
                (ids, types, None)
            }
            (image, ..) => return Err(at(reads_other(image.is_some()))),
        };
        let class = Some(Class { label, types, image });
        Ok(Sample { target: vec![false; ids.len()], ids, row: row.row, class, ..Sample::default() })
    }

    /// Writes what the model reads by, so that transformers finds it beside a tuned one.
    pub fn save(&self, folder: &Path) -> Result<(), Problem> {
        match &self.images {
            Some(images) => images.processor.save(folder),
            None => self.tokenizer.save(folder, &self.template),
        }
    }

    /// A text and the mark that ends it, in samples of at most `cutoff_len` tokens: of a long text nothing is left out.
    fn encode_text(&self, row: &Conversation, options: &EncodeOptions) -> Result<Vec<Sample>, Problem> {
        let text = row.turns.last().map(Message::text).unwrap_or_default();
        let eos = self.tokenizer.eos_token().unwrap_or_default();
        let at = |problem: Problem| problem.file(row.file.display()).row(row.row);
        let ids = self.tokenizer.encode(&format!("{text}{eos}")).map_err(at)?.ids;
        let sample = |ids: &[u32]| Sample {
            ids: ids.to_vec(),
            target: vec![true; ids.len()],
            row: row.row,
            ..Sample::default()
        };
        // A rest of one token predicts nothing.
        Ok(ids.chunks(options.cutoff_len).map(sample).filter(|sample| sample.targets() > 0).collect())
    }

    /// Token ids of a conversation that waits for the assistant's answer, or for the rest of it where the last message
    /// is the assistant's; or all of it as a source.
    pub fn encode_prompt(&self, chat: Chat<'_>) -> Result<Vec<u32>, Problem> {
        if let Some(Seq2Seq { end, .. }) = self.seq2seq {
            let mut ids = self.tokenizer.encode(&plain(chat.messages))?.ids;
            ids.push(end);
            return Ok(ids);
        }
        let answering = chat.messages.last().is_some_and(|message| message.role() == "assistant");
        let end = if answering { End::Open } else { End::GenerationPrompt };
        Ok(self.tokenizer.encode(&self.template.render(chat, end)?)?.ids)
    }

    /// The last turn as the target of all before it, which are read as they are: such models know no chat template.
    fn encode_pair(
        &self,
        Seq2Seq { start, end }: Seq2Seq,
        conversation: &Conversation,
        options: &EncodeOptions,
    ) -> Result<Sample, Problem> {
        let chat = Chat::from(conversation);
        let (before, answer) = chat.messages.split_at(chat.messages.len() - 1);
        let encode = |messages: &[Message]| Ok::<_, Problem>(self.tokenizer.encode(&plain(messages))?.ids);
        let (mut source, mut target) = (encode(before)?, encode(answer)?);
        let whole = source.len() + target.len() + MARKS;
        let [of_source, of_target] = shares([source.len(), target.len()], options.cutoff_len.saturating_sub(MARKS));
        source.truncate(of_source);
        target.truncate(of_target);
        if target.is_empty() {
            return Err(answer_cut(whole, options.cutoff_len));
        }
        source.push(end);
        let ids: Vec<u32> = iter::once(start).chain(target).chain([end]).collect();
        let target = (0..ids.len()).map(|at| at > 0).collect();
        Ok(Sample { ids, target, source, row: conversation.row, ..Sample::default() })
    }

    fn encode_turns(&self, conversation: &Conversation, options: &EncodeOptions) -> Result<Sample, Problem> {
        let chat = Chat::from(conversation);
        let (text, said) = self.template.render_said(chat)?;
        let counted = self.counted(chat, &text, said, options)?;
        let encoding = self.tokenizer.encode(&text)?;
        // A token across the edge counts, as in transformers: an answer that starts with a space can share one with the
        // line break before it.
        let counts =
            |&(start, end): &(usize, usize)| counted.iter().any(|range| start < range.end && end > range.start);
        let target = encoding.offsets.iter().take(options.cutoff_len).map(counts).collect();
        let whole = encoding.ids.len();
        let mut ids = encoding.ids;
        ids.truncate(options.cutoff_len);
        let sample = Sample { ids, target, row: conversation.row, ..Sample::default() };
        if sample.targets() == 0 {
            return Err(answer_cut(whole, options.cutoff_len));
        }
        Ok(sample)
    }

    /// Bytes of `text`, the rendered chat, that count for the loss; `said` is what the template marks as said by the
    /// assistant.
    fn counted(
        &self,
        chat: Chat<'_>,
        text: &str,
        said: Option<Vec<Range<usize>>>,
        options: &EncodeOptions,
    ) -> Result<Vec<Range<usize>>, Problem> {
        let turns = chat.messages;
        if options.train_on_prompt {
            return Ok(iter::once(0..text.len()).collect());
        }
        // The last turn is an answer.
        if let Some(mut said) = said {
            let skipped = if options.mask_history { said.len().saturating_sub(1) } else { 0 };
            return Ok(said.split_off(skipped));
        }
        let first = if options.mask_history { turns.len() - 1 } else { 0 };
        (first..turns.len())
            .filter(|&turn| turns[turn].role() == "assistant")
            .map(|turn| self.answer_range(chat, turn, text))
            .collect()
    }

    /// From where the assistant begins to the mark that ends its turn. Most templates do not say where that is, so it is
    /// found as the difference of what they render with the answer and without it.
    fn answer_range(&self, chat: Chat<'_>, answer: usize, text: &str) -> Result<Range<usize>, Problem> {
        let turns = chat.messages;
        let before = self.template.render(chat.first(answer), End::GenerationPrompt)?;
        let after = self.template.render(chat.first(answer + 1), End::Complete)?;
        // Some templates, such as Phi-3's, end the whole text with a mark that no earlier turn has.
        let eos = self.tokenizer.eos_token().unwrap_or_default();
        let after = match after.strip_suffix(eos) {
            Some(turns) if !text.starts_with(&after) => turns,
            _ => &after,
        };
        if !text.starts_with(&before) || !text.starts_with(after) {
            let (en, zh) = if answer + 1 < turns.len() {
                (
                    "set mask_history: true, give each answer its own row, or name a template that marks its answers",
                    "请设置 mask_history: true，让每个回答单独成行，或指定标记了回答的模板",
                )
            } else {
                ("choose another model, or change its chat template", "请选择其他模型，或修改其对话模板")
            };
            return Err(Problem::error(
                ProblemCode::ChatTemplate,
                "the chat template changes earlier turns when later ones are added, so answers cannot be found",
                "对话模板在增加轮次时会改变之前的内容，无法定位回答",
            )
            .found(format!("turn {} is rendered in two ways", answer + 1))
            .fix(en, zh));
        }
        // White space after the mark belongs to the next turn: the model never has to say it.
        Ok(before.len()..after.trim_end().len())
    }
}

fn answer_cut(whole: usize, cutoff_len: usize) -> Problem {
    Problem::warning(
        ProblemCode::AnswerCut,
        "cutoff_len cuts the whole answer of this row away; the row is left out",
        "cutoff_len 把该行的回答全部截掉了，该行将被忽略",
    )
    .key("cutoff_len")
    .found(format!("{whole} tokens"))
    .expected(format!("an answer within the first {cutoff_len} tokens"))
    .fix("raise cutoff_len, or shorten the row", "请增大 cutoff_len，或缩短该行")
}

/// Of a source and its target: the token that begins the latter, and those that end both.
const MARKS: usize = 3;

/// How many tokens of a source and of its target are left in `room`: half for each, unless one of them leaves more to the other.
pub fn shares([source, target]: [usize; 2], room: usize) -> [usize; 2] {
    let target = target.min((room / 2).max(room.saturating_sub(source)));
    [source.min(room - target), target]
}

/// Messages without a template, one below the other.
fn plain(messages: &[Message]) -> String {
    messages.iter().map(Message::text).collect::<Vec<_>>().join("\n")
}

fn reads_other(image: bool) -> Problem {
    let (found, expected) = if image { ("image", "text") } else { ("text", "image") };
    Problem::error(ProblemCode::InvalidValue, "this model does not read what the row has", "该模型读取的内容与该行不符")
        .key(found)
        .found(format!("a row with {found}"))
        .expected(expected)
        .fix("choose another model, or other data", "请换一个模型，或换一份数据")
}
