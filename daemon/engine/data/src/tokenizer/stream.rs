//! Text of an answer while its tokens arrive: whole characters only.

use super::Tokenizer;

/// Decodes tokens one by one. A token may hold part of a character; its text comes with the token that completes it.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    /// Bytes of the decoded text that were handed out.
    given: usize,
}

impl<'a> TextStream<'a> {
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, ids: Vec::new(), given: 0 }
    }

    /// The text that `id` completes; often its own, sometimes none, sometimes several tokens'.
    pub fn push(&mut self, id: u32) -> String {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids).unwrap_or_default();
        if text.ends_with('\u{fffd}') || text.len() < self.given {
            return String::new();
        }
        let new = text.get(self.given..).unwrap_or_default().to_owned();
        self.given = text.len();
        new
    }
}
