//! `{% generation %}` blocks, with which a template says what the assistant says (transformers' `AssistantTracker`).
//!
//! minijinja has no tags of one's own, so the block becomes a filter block that puts a mark on either side of its text;
//! the marks are taken out again, and where they were is what the assistant says.

use std::ops::Range;

/// Unicode's noncharacters: no text that programs exchange holds them.
const START: char = '\u{fdd0}';
const END: char = '\u{fdd1}';

pub(super) const FILTER: &str = "mark_generation";

/// The filter of the block.
pub(super) fn mark(text: &str) -> String {
    format!("{START}{text}{END}")
}

/// The template with its generation blocks as filter blocks, and whether there are any.
pub(super) fn rewrite(source: &str) -> (String, bool) {
    let (mut rewritten, mut rest, mut any) = (String::with_capacity(source.len()), source, false);
    while let Some(start) = rest.find("{%") {
        let Some(len) = rest[start..].find("%}") else { break };
        let tag = &rest[start + 2..start + len];
        let by = match tag.trim_matches(['-', '+']).trim() {
            "generation" => Some(tag.replace("generation", &format!("filter {FILTER}"))),
            "endgeneration" => Some(tag.replace("endgeneration", "endfilter")),
            _ => None,
        };
        any |= by.is_some();
        rewritten.push_str(&rest[..start + 2]);
        rewritten.push_str(by.as_deref().unwrap_or(tag));
        rest = &rest[start + len..];
    }
    rewritten.push_str(rest);
    (rewritten, any)
}

/// The text without marks, and the ranges in it that were marked.
pub(super) fn extract(marked: &str) -> (String, Vec<Range<usize>>) {
    let (mut text, mut ranges) = (String::with_capacity(marked.len()), Vec::new());
    let mut start = 0;
    for character in marked.chars() {
        match character {
            START => start = text.len(),
            END => ranges.push(start..text.len()),
            other => text.push(other),
        }
    }
    (text, ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_become_filters_and_white_space_control_stays() {
        let (rewritten, any) = rewrite("{% if a %}{%- generation -%}x{%- endgeneration %}{% endif %}{{ generation }}");
        assert_eq!(rewritten, "{% if a %}{%- filter mark_generation -%}x{%- endfilter %}{% endif %}{{ generation }}");
        assert!(any);
        assert_eq!(rewrite("{% if generation %}{% endif"), ("{% if generation %}{% endif".to_owned(), false));
    }

    #[test]
    fn marks_are_taken_out_and_their_places_kept() {
        let (text, ranges) = extract(&format!("a{}b{}", mark("你好"), mark("")));
        assert_eq!((text.as_str(), ranges), ("a你好b", vec![1..7, 8..8]));
    }
}
