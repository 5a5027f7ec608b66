//! Where the daemon keeps its data and where it listens.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Parser;

/// The JustTrain daemon: owns jobs and models, and starts the workers.
#[derive(Debug, Parser)]
#[command(name = "justtraind", version)]
pub(crate) struct Arguments {
    /// The data folder.
    #[arg(long, env = "JUSTTRAIN_HOME", value_name = "DIR")]
    home: Option<PathBuf>,
    /// Where to listen; port 0 takes a free one. Loopback only.
    #[arg(long, env = "JUSTTRAIN_ADDR", value_name = "ADDRESS", default_value = justtrain_proto::DEFAULT_ADDRESS)]
    addr: String,
}

#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) home: PathBuf,
    pub(crate) address: SocketAddr,
}

impl Config {
    pub(crate) fn new(arguments: Arguments) -> Result<Self> {
        // An empty variable counts as unset, as everywhere else in the shell.
        let home = match arguments.home.filter(|home| !home.as_os_str().is_empty()) {
            Some(home) => std::path::absolute(home)?,
            None => directories::ProjectDirs::from("", "", "justtrain")
                .context("there is no home folder; set JUSTTRAIN_HOME")?
                .data_dir()
                .to_owned(),
        };
        let given = if arguments.addr.is_empty() { justtrain_proto::DEFAULT_ADDRESS } else { &arguments.addr };
        let text = given.trim_start_matches("http://").replace("localhost", "127.0.0.1");
        let address: SocketAddr = text.parse().with_context(|| {
            format!("the address {text:?} is not IP:PORT, such as {}", justtrain_proto::DEFAULT_ADDRESS)
        })?;
        if !address.ip().is_loopback() {
            bail!(
                "the address {address} can be reached from other machines, and connections are not encrypted yet; \
                 listen on 127.0.0.1 and reach it through an SSH tunnel"
            );
        }
        Ok(Self { home, address })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(addr: &str) -> Result<Config> {
        Config::new(Arguments { home: Some("/tmp".into()), addr: addr.into() })
    }

    #[test]
    fn an_empty_variable_is_one_that_is_not_set() {
        assert_eq!(config("").unwrap().address.to_string(), justtrain_proto::DEFAULT_ADDRESS);
        let config = Config::new(Arguments { home: Some("".into()), addr: "127.0.0.1:0".into() }).unwrap();
        assert!(config.home.is_absolute());
    }

    #[test]
    fn only_loopback_is_listened_on() {
        assert_eq!(config("localhost:0").unwrap().address.port(), 0);
        assert!(config("[::1]:7707").is_ok());
        assert!(config("0.0.0.0:7707").unwrap_err().to_string().contains("SSH tunnel"));
        assert!(config("nonsense").unwrap_err().to_string().contains("nonsense"));
    }
}
