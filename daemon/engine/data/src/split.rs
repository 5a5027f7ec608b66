//! Held-out rows.

use std::collections::HashMap;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::Conversation;

/// Splits into training rows and about `wanted` validation rows. The split depends on the rows and the seed only, and
/// rows with the same prompt stay together, so that no held-out question was trained on.
pub fn split(conversations: Vec<Conversation>, wanted: usize, seed: u64) -> (Vec<Conversation>, Vec<Conversation>) {
    let rows = conversations.len();
    let mut groups: HashMap<Vec<String>, Vec<usize>> = HashMap::new();
    let mut prompts = Vec::new();
    for (index, conversation) in conversations.iter().enumerate() {
        let turns = &conversation.turns[..conversation.turns.len() - 1];
        let prompt: Vec<String> = turns.iter().map(|turn| format!("{}\n{}", turn.role(), turn.text())).collect();
        let group = groups.entry(prompt.clone()).or_default();
        if group.is_empty() {
            prompts.push(prompt);
        }
        group.push(index);
    }
    prompts.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let mut held_out = vec![false; rows];
    let (mut count, mut groups_left) = (0, prompts.len());
    for prompt in &prompts {
        // At least one group is left to train on.
        if count >= wanted || groups_left == 1 {
            break;
        }
        for &index in &groups[prompt] {
            held_out[index] = true;
            count += 1;
        }
        groups_left -= 1;
    }
    let (mut train, mut validation) = (Vec::new(), Vec::new());
    for (conversation, held_out) in conversations.into_iter().zip(held_out) {
        if held_out { validation.push(conversation) } else { train.push(conversation) }
    }
    (train, validation)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{Judgement, Message};

    fn rows(prompts: &[&str]) -> Vec<Conversation> {
        let row = |(row, prompt): (u64, &&str)| Conversation {
            turns: vec![Message::new("user", *prompt), Message::new("assistant", row.to_string())],
            tools: Vec::new(),
            documents: Vec::new(),
            image: None,
            judgement: Judgement::None,
            file: Path::new("data.json").into(),
            row,
        };
        (1..).zip(prompts).map(row).collect()
    }

    #[test]
    fn a_split_is_stable_and_disjoint() {
        let prompts: Vec<String> = (0..50).map(|i| format!("q{i}")).collect();
        let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
        let (train, validation) = split(rows(&prompts), 5, 3);
        assert_eq!((train.len(), validation.len()), (45, 5));
        assert_eq!(split(rows(&prompts), 5, 3), (train, validation.clone()));
        assert_ne!(split(rows(&prompts), 5, 4).1, validation);
        assert_eq!(split(rows(&prompts), 7, 3).1.len(), 7);
        assert_eq!(split(rows(&prompts), 0, 3).1.len(), 0);
    }

    #[test]
    fn the_same_question_never_stands_on_both_sides() {
        let (train, validation) = split(rows(&["a", "b", "a", "c", "b", "a", "d"]), 3, 1);
        for held_out in &validation {
            assert!(train.iter().all(|row| row.turns[0] != held_out.turns[0]));
        }
        assert!(!validation.is_empty());
        assert_eq!(split(rows(&["a", "a"]), 1, 1).0.len(), 2);
    }
}
