//! What was learnt and what was lost (Lopez-Paz & Ranzato 2017, arXiv 1706.08840): `R[t][i]` is the token accuracy on the held-out
//! rows of stage `i` after stage `t`.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use justtrain_worker_api::{Event, LogLevel, Problem, Text};
use serde::{Deserialize, Serialize};

use crate::checkpoint::cannot_write;

/// Numbers between 0 and 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ForgettingReport {
    pub stages: Vec<String>,
    /// Of the model before the first stage.
    pub baseline: Vec<f64>,
    /// A row a stage, in their order.
    pub matrix: Vec<Vec<f64>>,
    /// Mean of the last row.
    pub average_accuracy: f64,
    /// Mean of `R[T][i] − R[i][i]` over all but the last stage: below 0 where earlier stages were forgotten.
    pub backward_transfer: f64,
    /// Mean of `R[i−1][i] − baseline[i]` over all but the first.
    pub forward_transfer: f64,
    /// Of each stage but the last: the best it ever was before the end, less what it is at the end.
    pub forgetting: Vec<f64>,
}

impl ForgettingReport {
    /// `matrix` is square, with at least two stages.
    pub fn new(stages: Vec<String>, baseline: Vec<f64>, matrix: Vec<Vec<f64>>) -> Self {
        let count = stages.len();
        assert!(count >= 2 && matrix.len() == count && baseline.len() == count);
        let (last, mean) = (&matrix[count - 1], |sum: f64, count: usize| sum / count as f64);
        let before_last = 0..count - 1;
        let best = |stage: usize| matrix[..count - 1].iter().map(|row| row[stage]).fold(f64::MIN, f64::max);
        Self {
            average_accuracy: mean(last.iter().sum(), count),
            backward_transfer: mean(before_last.clone().map(|i| last[i] - matrix[i][i]).sum(), count - 1),
            forward_transfer: mean((1..count).map(|i| matrix[i - 1][i] - baseline[i]).sum(), count - 1),
            forgetting: before_last.map(|i| best(i) - last[i]).collect(),
            stages,
            baseline,
            matrix,
        }
    }

    /// A line for each stage, and one for the whole.
    pub(crate) fn events(&self) -> Vec<Event> {
        let cells = |row: &[f64]| {
            let cell = |(name, share): (&String, &f64)| format!("{name} {:.1}%", 100.0 * share);
            self.stages.iter().zip(row).map(cell).collect::<Vec<_>>().join("  ")
        };
        let line = |en: String, zh: String| Event::Log { level: LogLevel::Info, text: Text::new(en, zh) };
        let mut lines = vec![line(
            format!("token accuracy before: {}", cells(&self.baseline)),
            format!("训练前的词元准确率：{}", cells(&self.baseline)),
        )];
        for (name, row) in self.stages.iter().zip(&self.matrix) {
            lines.push(line(format!("after \"{name}\": {}", cells(row)), format!("“{name}”之后：{}", cells(row))));
        }
        let percent = |share: f64| format!("{:+.1}%", 100.0 * share);
        let (average, backward, forward) =
            (100.0 * self.average_accuracy, percent(self.backward_transfer), percent(self.forward_transfer));
        lines.push(line(
            format!("average accuracy {average:.1}%, backward transfer {backward}, forward transfer {forward}"),
            format!("平均准确率 {average:.1}%，后向迁移 {backward}，前向迁移 {forward}"),
        ));
        lines
    }

    /// The matrix as a picture: the darker, the better.
    pub fn svg(&self) -> String {
        const CELL: usize = 72;
        const LEFT: usize = 150;
        let escape = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;");
        let (width, height) = (LEFT + CELL * self.stages.len() + 8, CELL / 2 * (self.stages.len() + 2) + 16);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"13\">\n"
        );
        for (column, name) in self.stages.iter().enumerate() {
            let x = LEFT + CELL * column + CELL / 2;
            let _ = writeln!(svg, "<text x=\"{x}\" y=\"22\" text-anchor=\"middle\">{}</text>", escape(name));
        }
        let rows = std::iter::once(("before".to_owned(), &self.baseline));
        let rows = rows.chain(self.stages.iter().map(|name| format!("after {name}")).zip(&self.matrix));
        for (row, (name, shares)) in rows.enumerate() {
            let y = 32 + CELL / 2 * row;
            let middle = y + CELL / 4 + 5;
            let _ =
                writeln!(svg, "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{}</text>", LEFT - 8, escape(&name));
            for (column, share) in shares.iter().enumerate() {
                let (x, ink) = (LEFT + CELL * column, if *share > 0.6 { "white" } else { "black" });
                let _ = writeln!(
                    svg,
                    "<rect x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"{}\" fill=\"#d9480f\" fill-opacity=\"{share:.3}\" stroke=\"#adb5bd\"/>\
                     <text x=\"{}\" y=\"{middle}\" text-anchor=\"middle\" fill=\"{ink}\">{:.1}%</text>",
                    CELL - 2,
                    CELL / 2 - 2,
                    x + CELL / 2,
                    100.0 * share
                );
            }
        }
        svg + "</svg>\n"
    }
}

/// `forgetting.json` and `forgetting.svg` in the run's folder.
pub(crate) fn write_report(run_dir: &Path, report: &ForgettingReport) -> Result<(), Problem> {
    let text = serde_json::to_string_pretty(report).expect("a report is JSON") + "\n";
    for (name, text) in [("forgetting.json", text), ("forgetting.svg", report.svg())] {
        let path = run_dir.join(name);
        fs::write(&path, text).map_err(|error| cannot_write(&path, &error))?;
    }
    Ok(())
}

/// One row of the matrix, in a stage's folder.
pub(crate) fn write_scores(path: &Path, scores: &[f64]) -> Result<(), Problem> {
    let text = serde_json::to_string(scores).expect("numbers are JSON");
    fs::write(path, text).map_err(|error| cannot_write(path, &error))
}

pub(crate) fn read_scores(path: &Path) -> Option<Vec<f64>> {
    serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Worked out by hand.
    #[test]
    fn three_stages() {
        let matrix = vec![vec![0.9, 0.3, 0.1], vec![0.6, 0.8, 0.2], vec![0.5, 0.6, 0.7]];
        let report = ForgettingReport::new(["a", "b", "c<"].map(str::to_owned).to_vec(), vec![0.2, 0.2, 0.1], matrix);
        let near = |got: f64, want: f64| assert!((got - want).abs() < 1e-12, "{got} {want}");
        near(report.average_accuracy, 1.8 / 3.0);
        near(report.backward_transfer, ((0.5 - 0.9) + (0.6 - 0.8)) / 2.0);
        near(report.forward_transfer, ((0.3 - 0.2) + (0.2 - 0.1)) / 2.0);
        near(report.forgetting[0], 0.4);
        near(report.forgetting[1], 0.2);
        assert_eq!(report.events().len(), 5);
        let svg = report.svg();
        assert!(svg.contains("after c&lt;") && svg.contains("70.0%") && svg.matches("<rect").count() == 12);
    }
}
