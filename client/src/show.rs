//! Numbers, times, names and tables as people read them.

use std::fmt;

use justtrain_proto::v1::Stage;
use unicode_width::UnicodeWidthStr;

use crate::text::{Lang, say};

/// `512 B`, `1.4 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (count.max(1).ilog2() as usize / 10).min(UNITS.len() - 1);
    if unit == 0 {
        return format!("{count} B");
    }
    format!("{:.1} {}", count as f64 / f64::from(1u32 << 10).powi(unit as i32), UNITS[unit])
}

/// `42 s`, `3 min 05 s`, `2 h 10 min`.
pub(crate) fn duration(seconds: f64, lang: Lang) -> String {
    let total = if seconds.is_finite() { seconds.max(0.0).round() as u64 } else { return "?".into() };
    let (hours, minutes, seconds) = (total / 3600, total / 60 % 60, total % 60);
    match (hours, minutes) {
        (0, 0) => say!(lang, "{seconds} s", "{seconds} 秒"),
        (0, _) => say!(lang, "{minutes} min {seconds:02} s", "{minutes} 分 {seconds:02} 秒"),
        _ => say!(lang, "{hours} h {minutes:02} min", "{hours} 小时 {minutes:02} 分"),
    }
}

/// `12.3%` of a share in 0..1.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.1}%", share * 100.0)
}

/// `1,234,567`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// `2026-11-24 17:30:00Z`.
pub(crate) fn time(timestamp: &Option<prost_types::Timestamp>) -> String {
    timestamp.map_or_else(String::new, |time| {
        prost_types::Timestamp { seconds: time.seconds, nanos: 0 }.to_string().replace('T', " ")
    })
}

/// The last part of a resource name: `abc` of `jobs/abc`.
pub(crate) fn id(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// `stage 2/3 answers`.
pub(crate) fn stage(stage: &Stage, lang: Lang) -> String {
    let Stage { name, number, count } = stage;
    let name = clip(name, 20);
    say!(lang, "stage {number}/{count} {name}", "阶段 {number}/{count} {name}")
}

/// `text` on one line, at most `columns` wide.
pub(crate) fn clip(text: &str, columns: usize) -> String {
    let text = text.trim().replace('\n', "⏎");
    if text.width() <= columns {
        return text;
    }
    let mut clipped = String::new();
    for character in text.chars() {
        if clipped.width() + unicode_width::UnicodeWidthChar::width(character).unwrap_or(0) + 1 > columns {
            break;
        }
        clipped.push(character);
    }
    clipped + "…"
}

/// Columns as wide as their widest cell on the screen; Chinese characters are two columns wide.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    right: Vec<usize>,
}

impl Table {
    pub(crate) fn new<const N: usize>(header: [String; N]) -> Self {
        Self { rows: vec![header.into()], right: Vec::new() }
    }

    /// Columns of numbers.
    pub(crate) fn right_align(mut self, columns: &[usize]) -> Self {
        self.right = columns.to_vec();
        self
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows[0].len();
        let width = |column: usize| self.rows.iter().map(|row| row[column].width()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for (index, row) in self.rows.iter().enumerate() {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let padding = " ".repeat(widths[column] - cell.width());
                if self.right.contains(&column) {
                    line += &format!("{padding}{cell}  ");
                } else {
                    line += &format!("{cell}{padding}  ");
                }
            }
            let end = if index + 1 < self.rows.len() { "\n" } else { "" };
            write!(f, "{}{end}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(3 << 30), "3.0 GiB");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(duration(59.6, Lang::En), "1 min 00 s");
        assert_eq!(duration(7800.0, Lang::Zh), "2 小时 10 分");
        assert_eq!(duration(f64::INFINITY, Lang::En), "?");
    }

    #[test]
    fn wide_characters_count_twice() {
        let mut table = Table::new(["名称".into(), "n".into()]).right_align(&[1]);
        table.row(["ab".into(), "10".into()]);
        assert_eq!(table.to_string(), "名称   n\nab    10");
        assert_eq!(clip("一二三四", 5), "一二…");
    }
}
