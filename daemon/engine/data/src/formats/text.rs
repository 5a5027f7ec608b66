//! Plain texts, one a row under `text`: what a model reads on when its pre-training is continued.

use justtrain_worker_api::{FormatName, Problem};

use super::{Format, Judgement, Row, answer};
use crate::Message;

pub(super) struct Text;

impl Format for Text {
    fn name(&self) -> FormatName {
        FormatName::Text
    }

    fn signature(&self) -> &'static [&'static [&'static str]] {
        &[&["text"]]
    }

    /// One that nobody asked for.
    fn turns(&self, row: &Row) -> Result<Vec<Message>, Problem> {
        Ok(vec![Message::new("assistant", answer(row, "text")?)])
    }

    fn judgement(&self, _: &Row) -> Result<Judgement, Problem> {
        Ok(Judgement::Plain)
    }
}
