//! `justtraind`: the daemon. It owns jobs, models and workers, and links no tensor library.

mod config;
mod grpc;
mod home;
mod logging;
mod serve;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let arguments = config::Arguments::parse();
    match config::Config::new(arguments).and_then(serve::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            logging::to_standard_error(&format!("justtraind: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
