//! One answer of a model, piece by piece.

use clap::Args;
use justtrain_proto::v1::generate_response::Part;
use justtrain_proto::v1::{GenerateEnd, GenerateRequest, ModelSelector, Problem, Turn};
use serde_json::Value;

use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::problem;
use crate::session::Daemon;
use crate::text::{Lang, both};

/// How answers are sampled.
#[derive(Debug, Clone, Args)]
pub(crate) struct Sampling {
    /// Longest answer in tokens; 256 by default
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    max_new_tokens: u32,
    /// 0 always takes the most probable token
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Sample among the most probable tokens that together reach this share
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// The same seed gives the same answers
    #[arg(long, value_name = "S", default_value_t = 42)]
    seed: u64,
}

impl Sampling {
    pub(crate) fn request(&self, model: &ModelSelector, turns: Vec<Turn>, base: bool) -> GenerateRequest {
        GenerateRequest {
            model: Some(model.clone()),
            turns,
            max_new_tokens: self.max_new_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            seed: self.seed,
            base,
        }
    }
}

pub(crate) struct Answer {
    pub text: String,
    pub end: GenerateEnd,
}

/// What the model's answers came with: each warning comes with every answer, and is shown with the first.
#[derive(Debug, Default)]
pub(crate) struct Warnings(Vec<Problem>);

impl Warnings {
    /// Notes a warning, and returns it where it is new.
    fn note(&mut self, warning: Problem) -> Option<&Problem> {
        if self.0.contains(&warning) {
            return None;
        }
        self.0.push(warning);
        self.0.last()
    }

    pub(crate) fn json(&self, lang: Lang) -> Value {
        self.0.iter().map(|warning| problem::json(warning, lang)).collect()
    }
}

/// What comes before the end.
pub(crate) enum Piece<'a> {
    Text(&'a str),
    /// One that was not seen yet.
    Warning(&'a Problem),
}

/// Asks once; `piece` sees the text and new warnings as they come.
pub(crate) async fn ask(
    daemon: &Daemon,
    request: GenerateRequest,
    warnings: &mut Warnings,
    mut piece: impl FnMut(Piece<'_>),
) -> Result<Answer> {
    let mut stream = daemon.generation().generate(request).await?.into_inner();
    let mut text = String::new();
    while let Some(response) = stream.message().await? {
        match response.part {
            Some(Part::Text(more)) => {
                piece(Piece::Text(&more));
                text += &more;
            }
            Some(Part::Warning(warning)) => {
                if let Some(warning) = warnings.note(warning) {
                    piece(Piece::Warning(warning));
                }
            }
            Some(Part::End(end)) => return Ok(Answer { text, end }),
            None => {}
        }
    }
    Err(Failure::new(Exit::Failed, both!("the answer broke off", "回答中断")))
}
