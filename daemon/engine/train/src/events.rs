//! How a run talks to the outside: events out, a wish to stop in.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use justtrain_worker_api::{Event, LogLevel, Phase, Problem, Text};

/// Where events go: the worker's pipe, or a list in a test.
pub trait EventSink {
    fn emit(&mut self, event: Event);

    fn phase(&mut self, phase: Phase) {
        self.emit(Event::Phase { phase });
    }

    /// A problem that does not end the run.
    fn warn(&mut self, problem: &Problem) {
        let zh = Problem {
            message: Text::new(&problem.message.zh, ""),
            fix: Text::new(&problem.fix.zh, ""),
            ..problem.clone()
        };
        self.emit(Event::Log { level: LogLevel::Warning, text: Text::new(problem.to_string(), zh.to_string()) });
    }
}

impl EventSink for Vec<Event> {
    fn emit(&mut self, event: Event) {
        self.push(event);
    }
}

/// Set from another thread when the run shall save and end.
#[derive(Debug, Clone, Default)]
pub struct StopToken(Arc<AtomicBool>);

impl StopToken {
    pub fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
