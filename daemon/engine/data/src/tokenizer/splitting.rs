//! How byte-level BPE tokenizers split text before they merge, by the names of `tokenizer.ggml.pre`
//! (`llm_tokenizer_bpe` and `llama_vocab::impl::load` in llama.cpp's `llama-vocab.cpp`).
//!
//! Where llama.cpp had to rewrite a pattern for its own engine, the one here is that of the models' `tokenizer.json`.

use justtrain_worker_api::Problem;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

use super::broken;

/// What differs from one byte-level tokenizer to the next, vocabulary and merges aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Splitting {
    first: First,
    /// Text is put into Unicode's composed form.
    pub(super) nfc: bool,
    /// A piece that is a token already is not put together from its parts.
    pub(super) ignore_merges: bool,
    /// Without its own settings a text starts with the beginning-of-sequence token.
    pub(super) adds_bos: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    /// GPT-2's pattern, part of `ByteLevel` itself.
    Gpt2,
    /// Every digit alone, then GPT-2's pattern.
    DigitsThenGpt2,
    /// These patterns, one after the other; each splits what the earlier ones left.
    Patterns(&'static [&'static str]),
}

const LLAMA3: &[&str] = &[
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

/// As Llama 3 with every digit alone.
const QWEN2: &[&str] = &[
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

/// As Qwen 2 with marks among the letters.
const QWEN35: &[&str] = &[
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

/// A change from small to capital letters splits.
const TEKKEN: &[&str] = &[
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

const GPT4O: &[&str] = &[
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

const DEEPSEEK_V3: &[&str] = &[
    r"\p{N}{1,3}",
    "[\u{4E00}-\u{9FA5}\u{3040}-\u{309F}\u{30A0}-\u{30FF}]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
];

const DEEPSEEK_CODER: &[&str] =
    &["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u{4E00}-\u{9FA5}\u{800}-\u{4E00}\u{AC00}-\u{D7FF}]+", r"\p{N}"];

const DEEPSEEK_LLM: &[&str] = &[
    "[\r\n]",
    // Letters that have a case, written as numbers: some would change if this file were normalised.
    "\\s?[A-Za-z\u{B5}\u{C0}-\u{D6}\u{D8}-\u{F6}\u{F8}-\u{1BA}\u{1BC}-\u{1BF}\u{1C4}-\u{293}\u{295}-\u{2AF}\
     \u{370}-\u{373}\u{376}\u{377}\u{37B}-\u{37D}\u{37F}\u{386}\u{388}-\u{38A}\u{38C}\u{38E}-\u{3A1}\
     \u{3A3}-\u{3F5}\u{3F7}-\u{481}\u{48A}-\u{52F}\u{531}-\u{556}\u{10A0}-\u{10C5}\u{13A0}-\u{13F5}\
     \u{13F8}-\u{13FD}\u{1C90}-\u{1CBA}\u{1CBD}-\u{1CBF}\u{1D00}-\u{1D2B}\u{1D6B}-\u{1D77}\u{1D79}-\u{1D9A}\
     \u{1E00}-\u{1F15}\u{1F18}-\u{1F1D}\u{1F20}-\u{1F45}\u{1F48}-\u{1F4D}\u{1F50}-\u{1F57}\u{1F59}\u{1F5B}\
     \u{1F5D}\u{1F5F}-\u{1F7D}\u{1F80}-\u{1FB4}\u{1FB6}-\u{1FBC}\u{1FBE}\u{1FC2}-\u{1FC4}\u{1FC6}-\u{1FCC}\
     \u{1FD0}-\u{1FD3}\u{1FD6}-\u{1FDB}\u{1FE0}-\u{1FEC}\u{1FF2}-\u{1FF4}\u{1FF6}-\u{1FFC}\u{2102}\u{2107}\
     \u{210A}-\u{2113}\u{2115}\u{2119}-\u{211D}\u{2124}\u{2126}\u{2128}\u{212A}-\u{212D}\u{212F}-\u{2134}\u{2139}\
     \u{213C}-\u{213F}\u{2145}-\u{2149}\u{214E}\u{2183}\u{2184}\u{2C00}-\u{2C7B}\u{2C7E}-\u{2CE4}\
     \u{2CEB}-\u{2CEE}\u{2CF2}\u{2CF3}\u{A640}-\u{A66D}\u{A680}-\u{A69B}\u{A722}-\u{A76F}\u{A771}-\u{A787}\
     \u{A78B}-\u{A78E}\u{AB70}-\u{ABBF}\u{FB00}-\u{FB06}\u{FB13}-\u{FB17}\u{FF21}-\u{FF3A}\u{FF41}-\u{FF5A}\
     \u{10400}-\u{1044F}\u{104B0}-\u{104D3}\u{104D8}-\u{104FB}\u{10C80}-\u{10CB2}\u{10CC0}-\u{10CF2}\
     \u{118A0}-\u{118DF}\u{1E900}-\u{1E943}]+",
    "\\s?[!-/:-~\u{FF01}-\u{FF0F}\u{FF1A}-\u{FF5E}\u{2018}-\u{201F}\u{3000}-\u{3002}]+",
    r"\s+$",
    "[\u{4E00}-\u{9FA5}\u{800}-\u{4E00}\u{AC00}-\u{D7FF}]+",
    r"\p{N}+",
];

const PLAIN: Splitting = Splitting { first: First::Gpt2, nfc: false, ignore_merges: false, adds_bos: false };

const KNOWN: &[(&[&str], Splitting)] = &[
    // Files from before the key existed have no name; GPT-2 is where all of these came from.
    (&["default", "gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4", "roberta-bpe"], PLAIN),
    (
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        Splitting { first: First::DigitsThenGpt2, ..PLAIN },
    ),
    (
        &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        Splitting { first: First::Patterns(LLAMA3), ignore_merges: true, adds_bos: true, ..PLAIN },
    ),
    (&["dbrx", "smaug-bpe", "chatglm-bpe", "glm4"], Splitting { first: First::Patterns(LLAMA3), ..PLAIN }),
    (
        &["qwen2", "deepseek-r1-qwen", "kormo", "megrez"],
        Splitting { first: First::Patterns(QWEN2), nfc: true, ..PLAIN },
    ),
    (&["stablelm2", "hunyuan", "grok-2"], Splitting { first: First::Patterns(QWEN2), ..PLAIN }),
    (&["qwen35"], Splitting { first: First::Patterns(QWEN35), nfc: true, ..PLAIN }),
    (&["tekken"], Splitting { first: First::Patterns(TEKKEN), ignore_merges: true, adds_bos: true, ..PLAIN }),
    (&["gpt-4o", "llama4", "kanana2"], Splitting { first: First::Patterns(GPT4O), ..PLAIN }),
    (&["deepseek-llm"], Splitting { first: First::Patterns(DEEPSEEK_LLM), ..PLAIN }),
    (&["deepseek-coder"], Splitting { first: First::Patterns(DEEPSEEK_CODER), ..PLAIN }),
    (&["deepseek-v3", "hunyuan-dense"], Splitting { first: First::Patterns(DEEPSEEK_V3), ..PLAIN }),
];

impl Splitting {
    /// By llama.cpp's name.
    pub(super) fn named(name: &str) -> Result<Self, Problem> {
        KNOWN.iter().find(|(names, _)| names.contains(&name)).map(|&(_, splitting)| splitting).ok_or_else(|| {
            let known: Vec<&str> = KNOWN.iter().flat_map(|(names, _)| *names).copied().collect();
            broken(format!("tokenizer.ggml.pre {name}")).expected(known.join(", "))
        })
    }

    pub(super) fn pre_tokenizer(self) -> Result<PreTokenizerWrapper, Problem> {
        let patterns = match self.first {
            First::Gpt2 => return Ok(ByteLevel::new(false, false, true).into()),
            First::DigitsThenGpt2 => {
                let steps = vec![Digits::new(true).into(), ByteLevel::new(false, false, true).into()];
                return Ok(Sequence::new(steps).into());
            }
            First::Patterns(patterns) => patterns,
        };
        let mut steps = patterns
            .iter()
            .map(|&pattern| {
                let pattern = SplitPattern::Regex(pattern.to_owned());
                Ok(Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(broken)?.into())
            })
            .collect::<Result<Vec<PreTokenizerWrapper>, Problem>>()?;
        steps.push(ByteLevel::new(false, false, false).into());
        Ok(Sequence::new(steps).into())
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    use super::*;

    fn split(name: &str, text: &str) -> Vec<String> {
        let mut pieces = PreTokenizedString::from(text);
        Splitting::named(name).unwrap().pre_tokenizer().unwrap().pre_tokenize(&mut pieces).unwrap();
        let pieces = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
        pieces.into_iter().map(|(_, (start, end), _)| text[start..end].to_owned()).collect()
    }

    /// What sets the models' ways of splitting apart: digits, capitals after an apostrophe, line breaks.
    #[test]
    fn each_model_splits_text_in_its_own_way() {
        let text = "It'S 1234!\n\nok";
        assert_eq!(split("gpt-2", text), ["It", "'", "S", " 1234", "!", "\n", "\n", "ok"]);
        assert_eq!(split("smollm", text), ["It", "'", "S", " ", "1", "2", "3", "4", "!", "\n", "\n", "ok"]);
        assert_eq!(split("llama-bpe", text), ["It", "'S", " ", "123", "4", "!\n\n", "ok"]);
        assert_eq!(split("qwen2", text), ["It", "'S", " ", "1", "2", "3", "4", "!\n\n", "ok"]);
        assert_eq!(split("tekken", "aB It'S"), ["a", "B", " It", "'S"]);
        assert_eq!(split("deepseek-llm", "\u{1F7D}\u{1F60} 你b"), ["\u{1F7D}\u{1F60}", " ", "你", "b"]);
    }

    #[test]
    fn every_known_pattern_compiles() {
        for (names, splitting) in KNOWN {
            assert!(splitting.pre_tokenizer().is_ok(), "{names:?}");
        }
    }

    #[test]
    fn an_unknown_name_is_told_the_known_ones() {
        let problem = Splitting::named("falcon").unwrap_err();
        assert!(problem.found.unwrap().contains("falcon") && problem.expected.unwrap().contains("smollm"));
    }
}
