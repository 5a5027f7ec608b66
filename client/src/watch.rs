//! The events of one job as an unbroken sequence: a lost connection is picked up again after the last event that was
//! seen, nothing is skipped and nothing comes twice.

use justtrain_proto::v1::job_event::Event;
use justtrain_proto::v1::{JobEvent, JobReason, JobState, WatchJobRequest};
use tonic::{Code, Status, Streaming};

use crate::exit::Exit;
use crate::failure::{Failure, Result, is_transport};
use crate::retry::Backoff;
use crate::session::Session;
use crate::text::both;

pub(crate) struct JobEvents<'a> {
    session: &'a Session,
    name: String,
    resume_token: String,
    last_seq: u64,
    state: JobState,
    reason: JobReason,
    stream: Option<Streaming<JobEvent>>,
    backoff: Backoff,
}

impl<'a> JobEvents<'a> {
    /// From the first event of `name`, which is `jobs/{id}`.
    pub(crate) fn new(session: &'a Session, name: &str, backoff: Backoff) -> Self {
        Self {
            session,
            name: name.to_owned(),
            resume_token: String::new(),
            last_seq: 0,
            state: JobState::Unspecified,
            reason: JobReason::Unspecified,
            stream: None,
            backoff,
        }
    }

    /// The next event, or `None` once the job has ended.
    ///
    /// # Errors
    /// The daemon's answer where it is a refusal; [`Exit::DaemonUnreachable`] when it could not be reached for long.
    pub(crate) async fn next(&mut self) -> Result<Option<JobEvent>> {
        loop {
            match self.read().await {
                Ok(Some(event)) if event.seq == 0 => self.backoff.reset(),
                Ok(Some(event)) if event.seq <= self.last_seq => {}
                Ok(Some(event)) if event.seq > self.last_seq + 1 => {
                    // An event is missing: ask for it again.
                    let (seq, expected) = (event.seq, self.last_seq + 1);
                    let gap =
                        both!("event {expected} is missing before event {seq}", "事件 {seq} 之前缺少事件 {expected}");
                    self.reconnect(Failure::new(Exit::Failed, gap)).await?;
                }
                Ok(Some(event)) => {
                    self.accept(&event);
                    return Ok(Some(event));
                }
                Ok(None) if self.has_ended() => return Ok(None),
                // The daemon is going down while the job is not done.
                Ok(None) => self.reconnect(Status::unavailable("the stream ended").into()).await?,
                Err(lost) => self.reconnect(lost).await?,
            }
        }
    }

    /// Reads from the stream, opening it where there is none. What cannot be mended by trying again is an error of
    /// [`Self::reconnect`], which sees the same failure.
    async fn read(&mut self) -> Result<Option<JobEvent>> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let request = WatchJobRequest { name: self.name.clone(), resume_token: self.resume_token.clone() };
                let answer = self.session.connect().await?.jobs().watch_job(request).await.map_err(lost_or_refused)?;
                self.stream.insert(answer.into_inner())
            }
        };
        stream.message().await.map_err(lost_or_refused)
    }

    fn accept(&mut self, event: &JobEvent) {
        self.last_seq = event.seq;
        self.resume_token.clone_from(&event.resume_token);
        self.backoff.reset();
        if let Some(Event::StateChanged(change)) = &event.event
            && let Some(job) = &change.job
        {
            (self.state, self.reason) = (job.state(), job.reason());
        }
    }

    fn has_ended(&self) -> bool {
        match self.state {
            JobState::Succeeded | JobState::Failed | JobState::Cancelled => true,
            // After a restart of the daemon the job goes on by itself.
            JobState::Interrupted => self.reason != JobReason::DaemonRestarted,
            _ => false,
        }
    }

    async fn reconnect(&mut self, failure: Failure) -> Result<()> {
        self.stream = None;
        let worth_trying = matches!(failure.exit, Exit::DaemonUnreachable | Exit::Failed);
        if worth_trying && self.backoff.wait().await { Ok(()) } else { Err(failure) }
    }
}

/// A reader that was cut off for being slow comes back with its token, exactly as one whose connection broke.
fn lost_or_refused(status: Status) -> Failure {
    let cut_off = status.code() == Code::ResourceExhausted;
    let mut failure = Failure::from(status.clone());
    if cut_off || is_transport(&status) {
        failure.exit = Exit::DaemonUnreachable;
    }
    failure
}

#[cfg(test)]
mod tests;
