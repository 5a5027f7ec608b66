//! The worker's end of the pipe to the daemon.

use std::io::{BufRead, Write};
use std::sync::mpsc::{Receiver, channel};

use justtrain_train::{EventSink, StopToken};
use justtrain_worker_api::{Control, Event, Message};

/// Writes messages to standard output. When nobody reads any more, the daemon is gone and so is this process.
#[derive(Debug, Clone)]
pub(crate) struct Pipe;

impl Pipe {
    pub(crate) fn send(&self, message: &Message) {
        let mut line = serde_json::to_vec(message).expect("messages are JSON");
        line.push(b'\n');
        let mut out = std::io::stdout().lock();
        if out.write_all(&line).and_then(|()| out.flush()).is_err() {
            std::process::exit(1);
        }
    }
}

impl EventSink for Pipe {
    fn emit(&mut self, event: Event) {
        self.send(&Message::Event(event));
    }
}

/// Control lines as they arrive; the channel closes with standard input.
pub(crate) fn controls() -> Receiver<Control> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            // A line that is no control comes from a newer daemon; the ones we know still work.
            if let Ok(control) = serde_json::from_str(&line)
                && sender.send(control).is_err()
            {
                return;
            }
        }
    });
    receiver
}

/// Set by `Control::Stop`, and when the daemon closes standard input.
pub(crate) fn stop_on_request() -> StopToken {
    let (token, controls) = (StopToken::default(), controls());
    let set = token.clone();
    std::thread::spawn(move || {
        for control in controls {
            if control == Control::Stop {
                break;
            }
        }
        set.stop();
    });
    token
}
