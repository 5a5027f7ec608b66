//! Text of an answer while its tokens arrive: whole characters only.

use super::Tokenizer;

/// Decodes tokens one by one. A token may hold part of a character; its text comes with the token that completes it.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// The tokens given out last, and those that wait. Some decoders look at a token's neighbours (a space is dropped at
    /// the start of a text), so the new ones are never decoded alone; and never all, which would take quadratic time.
    ids: Vec<u32>,
    /// How many of `ids` were given out.
    given: usize,
}

impl<'a> TextStream<'a> {
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, ids: Vec::new(), given: 0 }
    }

    /// The text that `id` completes; often its own, sometimes none, sometimes several tokens'.
    pub fn push(&mut self, id: u32) -> String {
        self.ids.push(id);
        let before = self.tokenizer.decode(&self.ids[..self.given]).unwrap_or_default();
        let text = self.tokenizer.decode(&self.ids).unwrap_or_default();
        match text.get(before.len()..) {
            Some(new) if !new.is_empty() && !new.ends_with('\u{fffd}') => {
                self.ids.drain(..self.given);
                self.given = self.ids.len();
                new.to_owned()
            }
            _ => String::new(),
        }
    }
}
