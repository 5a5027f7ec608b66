//! In which order the sources of a pull are tried: each is asked first what it has, all at the same time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use justtrain_worker_api::{Problem, Text};
use tokio::task::JoinSet;

use crate::http::Http;
use crate::sources::{Offer, Source, SourceKind, Wanted};

/// Once one source has the model, the others have this long to say what they have.
const GRACE: Duration = Duration::from_secs(2);
/// An answer that comes sooner is never called slow.
const QUICK: Duration = Duration::from_secs(1);
/// How many times longer than the quickest answer a slow one takes.
const SLOW: u32 = 4;

/// A source to try.
pub(crate) struct Choice {
    pub(crate) source: Arc<dyn Source>,
    /// What it has; not known yet where it has not answered in time.
    pub(crate) offer: Option<Offer>,
}

pub(crate) struct Order {
    pub(crate) choices: Vec<Choice>,
    /// One line for each source that was asked.
    pub(crate) reasons: Vec<Text>,
    /// Why sources do not have it.
    pub(crate) problems: Vec<Problem>,
}

/// What a source came to.
enum Looked {
    Has(Offer, Duration),
    HasNot(Problem),
    StillSilent,
}

impl Order {
    /// Asks `sources`, which come in the order of preference.
    pub(crate) async fn of(sources: Vec<Arc<dyn Source>>, wanted: &Wanted, http: &Http) -> Self {
        let looked = look(&sources, wanted, http).await;
        let quickest = looked.iter().filter_map(Looked::told).min().unwrap_or_default();
        let limit = QUICK.max(quickest * SLOW);
        let (mut first, mut later, mut untold) = (Vec::new(), Vec::new(), Vec::new());
        let (mut reasons, mut problems) = (Vec::new(), Vec::new());
        for (source, looked) in sources.into_iter().zip(looked) {
            let kind = source.kind();
            match looked {
                Looked::Has(Offer::Untold, _) => untold.push(Choice { source, offer: Some(Offer::Untold) }),
                Looked::Has(offer, took) => {
                    let slow = took > limit;
                    reasons.push(has(kind, took, slow));
                    if slow { &mut later } else { &mut first }.push(Choice { source, offer: Some(offer) });
                }
                Looked::HasNot(problem) => {
                    let problem = problem.key(kind.as_str());
                    reasons.push(reason(&problem));
                    problems.push(problem);
                }
                Looked::StillSilent => {
                    reasons.push(Text::new(
                        format!("{kind}: no answer yet; kept for when the others fail"),
                        format!("{kind}：尚未应答，留作备用"),
                    ));
                    later.push(Choice { source, offer: None });
                }
            }
        }
        Self { choices: first.into_iter().chain(later).chain(untold).collect(), reasons, problems }
    }
}

impl Looked {
    /// How long an answer with a listing took.
    fn told(&self) -> Option<Duration> {
        match self {
            Self::Has(Offer::Listing(_), took) => Some(*took),
            _ => None,
        }
    }
}

async fn look(sources: &[Arc<dyn Source>], wanted: &Wanted, http: &Http) -> Vec<Looked> {
    let mut asked = JoinSet::new();
    for (index, source) in sources.iter().cloned().enumerate() {
        let (wanted, http) = (wanted.clone(), http.clone());
        asked.spawn(async move {
            let start = Instant::now();
            let looked = source.look(&wanted, &http).await;
            (index, looked.map(|offer| (offer, start.elapsed())))
        });
    }
    let mut looked: Vec<_> = sources.iter().map(|_| Looked::StillSilent).collect();
    let mut deadline = None;
    loop {
        let next = match deadline {
            Some(deadline) => tokio::time::timeout_at(deadline, asked.join_next()).await.ok().flatten(),
            None => asked.join_next().await,
        };
        let Some(answered) = next else { return looked };
        let Ok((index, answer)) = answered else { continue };
        looked[index] = match answer {
            Ok((offer, took)) => Looked::Has(offer, took),
            Err(problem) => Looked::HasNot(problem),
        };
        if looked[index].told().is_some() {
            deadline.get_or_insert_with(|| tokio::time::Instant::now() + GRACE);
        }
    }
}

fn has(kind: SourceKind, took: Duration, slow: bool) -> Text {
    let seconds = took.as_secs_f64();
    match slow {
        false => Text::new(
            format!("{kind}: has it, answered in {seconds:.1} s"),
            format!("{kind}：有该模型，{seconds:.1} 秒内应答"),
        ),
        true => Text::new(
            format!("{kind}: has it, but took {seconds:.1} s to answer, so it comes later"),
            format!("{kind}：有该模型，但应答用了 {seconds:.1} 秒，排在后面"),
        ),
    }
}

/// `hub: the server cannot be reached (…)`.
pub(crate) fn reason(problem: &Problem) -> Text {
    let source = problem.key.as_deref().unwrap_or_default();
    let found = problem.found.as_deref().unwrap_or_default();
    Text::new(
        format!("{source}: {} ({found})", problem.message.en),
        format!("{source}：{}（{found}）", problem.message.zh),
    )
}
