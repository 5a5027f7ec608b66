//! Which of two numbers is larger: pairs that a small model gets wrong (9.11 and 9.9), with a mechanical analysis.
//!
//! The answer is a function of the question alone: first the signs, then the integer parts, then the decimals place by
//! place up to the first that differs, a missing one being 0. So a held-out answer can be right word for word.
//!
//! A small model learns it in a hundred steps because each token asks one thing of it: what is compared stands side by
//! side before the order is said, the larger number comes first whichever is asked for, and which is asked for is said
//! before it is named.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fmt;
use std::iter;

use justtrain_worker_api::DataLanguage;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Row;

/// A decimal number as it is written: 3.10 is not 3.1, though they are equal.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Number {
    negative: bool,
    integer: u64,
    decimals: String,
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, dot) = (if self.negative { "-" } else { "" }, if self.decimals.is_empty() { "" } else { "." });
        write!(f, "{sign}{}{dot}{}", self.integer, self.decimals)
    }
}

impl Number {
    /// The decimals with zeros up to `digits`.
    fn padded(&self, digits: usize) -> String {
        format!("{:0<digits$}", self.decimals)
    }

    fn compare(&self, other: &Self) -> Ordering {
        let digits = self.decimals.len().max(other.decimals.len());
        let key = |number: &Self| (number.integer, number.padded(digits));
        match (self.negative, other.negative) {
            (false, true) => Ordering::Greater,
            (true, false) => Ordering::Less,
            (false, false) => key(self).cmp(&key(other)),
            (true, true) => key(other).cmp(&key(self)),
        }
    }
}

pub(super) fn rows(count: usize, seed: u64, language: DataLanguage) -> Vec<Row> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut seen = HashSet::new();
    let mut rows = Vec::with_capacity(count);
    while rows.len() < count {
        let (a, b) = pair(&mut rng);
        if a == b {
            continue;
        }
        // A pair in the other order is the same question: it must not be held out from one and trained on as the other.
        let mut key = [a.to_string(), b.to_string()];
        key.sort_unstable();
        if !seen.insert(key) {
            continue;
        }
        let larger = rng.random_bool(0.5);
        let question = questions(language, larger).choose(&mut rng).expect("there are questions");
        let instruction = question.replace("{a}", &a.to_string()).replace("{b}", &b.to_string());
        rows.push(Row { instruction, input: String::new(), output: answer(language, &a, &b, larger) });
    }
    rows
}

/// Mostly pairs with the same integer part and decimals of different lengths: the trap.
fn pair(rng: &mut ChaCha8Rng) -> (Number, Number) {
    let negative = rng.random_bool(0.08);
    let number = |integer, decimals: String| Number { negative, integer, decimals };
    let limit = *[10u64, 20, 100, 1000].choose(rng).expect("there are ranges");
    let integer = rng.random_range(0..limit);
    let (a, b) = match rng.random_range(0..100) {
        0..38 => {
            let digits = rng.random_range(1..=2);
            let other = if rng.random_bool(0.12) { 3 } else { rng.random_range(1..=2) };
            (number(integer, decimals(rng, digits)), number(integer, decimals(rng, other)))
        }
        38..52 => {
            // Equal up to the last digit.
            let mut first = decimals(rng, 1);
            let last = rng.random_range(0..=9u32);
            let mut second = first.clone();
            first.push_str(&last.to_string());
            second.push_str(&((last + rng.random_range(1..=9)) % 10).to_string());
            (number(integer, first), number(integer, second))
        }
        52..60 => {
            // Equal in value, written differently.
            let digits = rng.random_range(1..=2);
            let first = decimals(rng, digits);
            (number(integer, first.clone()), number(integer, first + "0"))
        }
        60..80 => {
            let near = rng.random_range(1..=limit.min(20));
            (number(integer, String::new()), number(integer + near, String::new()))
        }
        _ => {
            let (digits, other) = (rng.random_range(0..=2), rng.random_range(0..=2));
            let far = rng.random_range(1..=limit);
            (number(integer, decimals(rng, digits)), number(integer + far, decimals(rng, other)))
        }
    };
    let (mut a, b) = if rng.random_bool(0.5) { (a, b) } else { (b, a) };
    let zero = |number: &Number| number.integer == 0 && number.decimals.chars().all(|digit| digit == '0');
    if rng.random_bool(0.08) && !zero(&a) {
        a.negative = !a.negative;
    }
    // There is no minus zero.
    let positive = |mut number: Number| {
        number.negative &= !zero(&number);
        number
    };
    (positive(a), positive(b))
}

fn decimals(rng: &mut ChaCha8Rng, digits: usize) -> String {
    (0..digits).map(|_| char::from(b'0' + rng.random_range(0..10u8))).collect()
}

fn questions(language: DataLanguage, larger: bool) -> &'static [&'static str] {
    match (language, larger) {
        (DataLanguage::En, true) => &[
            "Which is larger, {a} or {b}?",
            "Which number is greater: {a} or {b}?",
            "Compare {a} and {b}. Which one is bigger?",
            "Is {a} or {b} the larger number?",
            "Find the larger of {a} and {b}.",
            "Between {a} and {b}, which is the greater value?",
            "Tell me the bigger number: {a}, {b}.",
            "What is the maximum of {a} and {b}?",
        ],
        (DataLanguage::En, false) => &[
            "Which is smaller, {a} or {b}?",
            "Which number is less: {a} or {b}?",
            "Compare {a} and {b}. Which one is smaller?",
            "Is {a} or {b} the smaller number?",
            "Find the smaller of {a} and {b}.",
            "Between {a} and {b}, which is the lesser value?",
            "Tell me the smaller number: {a}, {b}.",
            "What is the minimum of {a} and {b}?",
        ],
        (DataLanguage::Zh, true) => &[
            "{a} 和 {b} 哪个更大？",
            "{a} 与 {b} 相比，哪个数大？",
            "比较 {a} 和 {b}，哪一个更大？",
            "请找出 {a} 和 {b} 中较大的数。",
            "在 {a} 和 {b} 之间，较大的是哪个？",
            "{a}、{b}，请说出大的那个数。",
            "{a} 和 {b} 的最大值是多少？",
        ],
        (DataLanguage::Zh, false) => &[
            "{a} 和 {b} 哪个更小？",
            "{a} 与 {b} 相比，哪个数小？",
            "比较 {a} 和 {b}，哪一个更小？",
            "请找出 {a} 和 {b} 中较小的数。",
            "在 {a} 和 {b} 之间，较小的是哪个？",
            "{a}、{b}，请说出小的那个数。",
            "{a} 和 {b} 的最小值是多少？",
        ],
    }
}

/// Names of the decimal places; no number has more.
const PLACES: [(&str, &str); 3] = [("Tenths", "十分位"), ("Hundredths", "百分位"), ("Thousandths", "千分位")];

fn answer(language: DataLanguage, a: &Number, b: &Number, larger: bool) -> String {
    let order = a.compare(b);
    let (first, second) = if order == Ordering::Less { (b, a) } else { (a, b) };
    let steps = steps(language, a, b);
    if order == Ordering::Equal {
        return match language {
            DataLanguage::En => format!("{steps}, so {first} = {second}. They are equal.\nAnswer: equal"),
            DataLanguage::Zh => format!("{steps}，所以 {first} = {second}。两数相等。\n答案：相等"),
        };
    }
    let picked = if larger { first } else { second };
    match language {
        DataLanguage::En => {
            let asked = if larger { "larger" } else { "smaller" };
            format!("{steps}, so {first} > {second}. The {asked} is {picked}.\nAnswer: {picked}")
        }
        DataLanguage::Zh => {
            let asked = if larger { "大" } else { "小" };
            format!("{steps}，所以 {first} > {second}。较{asked}的是 {picked}。\n答案：{picked}")
        }
    }
}

/// What decides the order, up to the first difference.
fn steps(language: DataLanguage, a: &Number, b: &Number) -> String {
    let zh = language == DataLanguage::Zh;
    if a.negative != b.negative {
        return if zh { "符号不同".to_owned() } else { "The signs differ".to_owned() };
    }
    let digits = a.decimals.len().max(b.decimals.len());
    let labels = iter::once(("Integer parts", "整数部分")).chain(PLACES);
    let parts = |number: &Number| -> Vec<String> {
        iter::once(number.integer.to_string()).chain(number.padded(digits).chars().map(String::from)).collect()
    };
    let mut steps = Vec::new();
    for ((label, x), y) in labels.zip(parts(a)).zip(parts(b)) {
        let relation = match (x == y, zh) {
            (true, _) => "=",
            (false, true) => "和",
            (false, false) => "and",
        };
        steps.push(if zh {
            format!("{}：{x} {relation} {y}", label.1)
        } else {
            format!("{}: {x} {relation} {y}", label.0)
        });
        if x != y {
            break;
        }
    }
    let steps = steps.join(if zh { "。" } else { ". " });
    match (a.negative, zh) {
        (false, _) => steps,
        (true, true) => format!("两个都是负数，去掉负号比较。{steps}"),
        (true, false) => format!("Both are negative, so compare without the sign. {steps}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(text: &str) -> Number {
        let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let (integer, decimals) = text.split_once('.').unwrap_or((text, ""));
        Number { negative, integer: integer.parse().unwrap(), decimals: decimals.to_owned() }
    }

    #[test]
    fn the_trap_is_explained() {
        let text = answer(DataLanguage::En, &number("9.11"), &number("9.9"), true);
        let expected = "Integer parts: 9 = 9. Tenths: 1 and 9, so 9.9 > 9.11. The larger is 9.9.\nAnswer: 9.9";
        assert_eq!(text, expected);
        let text = answer(DataLanguage::Zh, &number("-2.5"), &number("-2.50"), false);
        let expected = "两个都是负数，去掉负号比较。整数部分：2 = 2。十分位：5 = 5。百分位：0 = 0，所以 -2.5 = -2.50。\
                        两数相等。\n答案：相等";
        assert_eq!(text, expected);
        let text = answer(DataLanguage::En, &number("-7.5"), &number("-10"), false);
        let expected = "Both are negative, so compare without the sign. Integer parts: 7 and 10, so -7.5 > -10. \
                        The smaller is -10.\nAnswer: -10";
        assert_eq!(text, expected);
    }

    #[test]
    fn comparison_agrees_with_arithmetic() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut seen = [0; 3];
        for _ in 0..5000 {
            let (a, b) = pair(&mut rng);
            let thousandths = |n: &Number| {
                let size = n.integer as i64 * 1000 + n.padded(3).parse::<i64>().unwrap();
                if n.negative { -size } else { size }
            };
            let expected = thousandths(&a).cmp(&thousandths(&b));
            assert_eq!(a.compare(&b), expected, "{a} {b}");
            assert_ne!(a.to_string(), "-0");
            seen[(expected as i8 + 1) as usize] += 1;
        }
        assert!(seen.iter().all(|&count| count > 100), "every outcome is there: {seen:?}");
    }

    #[test]
    fn a_set_is_reproducible_without_repeats_and_has_the_trap() {
        let set = rows(2000, 7, DataLanguage::En);
        assert_eq!(set, rows(2000, 7, DataLanguage::En));
        assert_ne!(set, rows(2000, 8, DataLanguage::En));
        let pairs: HashSet<_> = set
            .iter()
            .map(|row| {
                let is_numeric = |c: char| c.is_ascii_digit() || c == '-' || c == '.';
                let words = row.instruction.split(|c: char| !is_numeric(c)).map(|word| word.trim_end_matches('.'));
                let mut pair: Vec<&str> = words.filter(|word| word.contains(|c: char| c.is_ascii_digit())).collect();
                assert_eq!(pair.len(), 2, "{}", row.instruction);
                pair.sort_unstable();
                pair
            })
            .collect();
        assert_eq!(pairs.len(), 2000, "no pair comes twice, in whichever order");
        // The smaller number is the one with more decimals.
        let trap = set.iter().filter(|row| {
            let numbers: Vec<&str> = row.output.rsplit("so ").next().unwrap().split([' ', '\n']).collect();
            let (larger, smaller) = (number(numbers[0]), number(numbers[2].trim_end_matches('.')));
            larger.integer == smaller.integer && larger.decimals.len() < smaller.decimals.len()
        });
        assert!(trap.count() > 200);
    }
}
