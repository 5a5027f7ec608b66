//! Draws every schedule for the guide, from the very numbers that a run would use.

use std::fmt::Write as _;
use std::path::Path;

use super::{PlateauState, Schedule, SchedulerKwargs, SchedulerType, Shape};

const STEPS: u64 = 240;
const WARMUP: u64 = 24;
/// Size of a panel, and room around it.
const PANEL: [f64; 2] = [210.0, 90.0];
const GAP: [f64; 2] = [24.0, 40.0];
const COLUMNS: usize = 3;

/// Run with `JUSTTRAIN_UPDATE_DOCS=1` to draw it anew.
#[test]
fn the_published_picture_is_this_one() {
    let ours = picture();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../docs/guides/schedules.svg");
    if std::env::var_os("JUSTTRAIN_UPDATE_DOCS").is_some() {
        std::fs::write(&file, &ours).expect("write the picture");
    }
    let published = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(published == ours, "run this test with JUSTTRAIN_UPDATE_DOCS=1 to bring schedules.svg up to date");
}

fn picture() -> String {
    let rows = SchedulerType::ALL.len().div_ceil(COLUMNS);
    let width = COLUMNS as f64 * (PANEL[0] + GAP[0]) + GAP[0];
    let height = rows as f64 * (PANEL[1] + GAP[1]) + 12.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"monospace\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    for (index, kind) in SchedulerType::ALL.into_iter().enumerate() {
        let left = GAP[0] + (index % COLUMNS) as f64 * (PANEL[0] + GAP[0]);
        let top = 28.0 + (index / COLUMNS) as f64 * (PANEL[1] + GAP[1]);
        let [panel_width, panel_height] = PANEL;
        let points: Vec<String> = rates(kind)
            .into_iter()
            .enumerate()
            .map(|(step, rate)| {
                let x = left + panel_width * step as f64 / (STEPS - 1) as f64;
                format!("{x:.1},{:.1}", top + panel_height * (1.0 - rate))
            })
            .collect();
        let bottom = top + panel_height;
        let _ = write!(
            svg,
            "<text x=\"{left}\" y=\"{}\" fill=\"#212529\">{}</text>\n\
             <path d=\"M{left},{top} V{bottom} H{}\" fill=\"none\" stroke=\"#adb5bd\"/>\n\
             <polyline points=\"{}\" fill=\"none\" stroke=\"#d9480f\" stroke-width=\"2\"/>\n",
            top - 8.0,
            kind.name(),
            left + panel_width,
            points.join(" ")
        );
    }
    svg + "</svg>\n"
}

/// Shares of the highest rate, with settings that show what a schedule is about.
fn rates(kind: SchedulerType) -> Vec<f64> {
    let kwargs = SchedulerKwargs {
        num_cycles: (kind == SchedulerType::CosineWithRestarts).then_some(3.0),
        min_lr_rate: Some(0.2),
        power: Some(2.0),
        num_decay_steps: Some(0.25),
        factor: Some(0.5),
        patience: Some(1),
        ..SchedulerKwargs::default()
    };
    let warmup_steps = if kind.warms_up() { WARMUP } else { 0 };
    let shape = kwargs.shape(kind, 1.0, warmup_steps, STEPS);
    let schedule = Schedule { shape, learning_rate: 1.0, warmup_steps, total_steps: STEPS };
    let mut plateau = PlateauState::new(1.0);
    let rate = |step: u64| {
        // A loss that falls for a while and then no more, validated every tenth step.
        if let Shape::ReduceOnPlateau(rule) = &schedule.shape
            && step > 0
            && step.is_multiple_of(10)
        {
            rule.observe(&mut plateau, 2.0 - step.min(80) as f64 / 100.0);
        }
        plateau.learning_rate * schedule.factor(step)
    };
    (0..STEPS).map(rate).collect()
}
