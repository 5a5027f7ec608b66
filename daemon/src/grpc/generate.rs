//! `GenerateService`: answers, piece by piece.

use justtrain_proto::v1::generate_service_server::GenerateService;
use justtrain_proto::v1::{EndReason, GenerateEnd, GenerateRequest, GenerateResponse, generate_response::Part};
use justtrain_worker_api::{Event, GenerateOptions, GenerationEnd, Turn};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, async_trait};

use super::warm::Question;
use super::{Daemon, convert, status};

#[async_trait]
impl GenerateService for Daemon {
    type GenerateStream = ReceiverStream<Result<GenerateResponse, Status>>;

    async fn generate(&self, request: Request<GenerateRequest>) -> Result<Response<Self::GenerateStream>, Status> {
        let request = request.into_inner();
        if request.turns.is_empty() {
            return Err(status::invalid("turns", "", "at least the user's turn"));
        }
        let model = self.model(request.model)?;
        let defaults = GenerateOptions::default();
        let question = Question {
            turns: request.turns.into_iter().map(|turn| Turn { role: turn.role, content: turn.content }).collect(),
            options: GenerateOptions {
                max_new_tokens: if request.max_new_tokens == 0 {
                    defaults.max_new_tokens
                } else {
                    request.max_new_tokens
                },
                temperature: request.temperature,
                top_p: if request.top_p == 0.0 { defaults.top_p } else { request.top_p },
                seed: request.seed,
            },
            base: request.base,
        };
        let (sender, stream) = mpsc::channel(64);
        let (events, mut answer) = mpsc::channel(1);
        let daemon = self.clone();
        tokio::spawn(async move {
            let asked = tokio::spawn(async move { daemon.warm.ask(model, question, events).await });
            while let Some(event) = answer.recv().await {
                let Some(part) = part(event) else { continue };
                if sender.send(part.map(|part| GenerateResponse { part: Some(part) })).await.is_err() {
                    // The client has left. Without a receiver the answer is stopped.
                    return;
                }
            }
            if let Ok(Err(failure)) = asked.await {
                let _ = sender.send(Err(status::of_failure(&failure))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

fn part(event: Event) -> Option<Result<Part, Status>> {
    match event {
        Event::Warned { problem, .. } => Some(Ok(Part::Warning(convert::problem(&problem)))),
        Event::Token { text, .. } => Some(Ok(Part::Text(text))),
        Event::Generated { end, prompt_tokens, answer_tokens, seconds, .. } => {
            let reason = match end {
                GenerationEnd::Stop => EndReason::Stop,
                GenerationEnd::Length => EndReason::Length,
                GenerationEnd::Cancelled => EndReason::Cancelled,
            };
            Some(Ok(Part::End(GenerateEnd { reason: reason.into(), prompt_tokens, answer_tokens, seconds })))
        }
        Event::GenerateFailed { problem, .. } => Some(Err(status::of_problem(problem))),
        _ => None,
    }
}
