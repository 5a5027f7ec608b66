//! Servers, tokens and folders, as the environment names them for the hubs' own tools too.

use std::env;
use std::fs;
use std::path::PathBuf;

use reqwest::Url;

/// Servers and the tokens for them.
#[derive(Debug, Clone)]
pub struct Settings {
    pub hub_endpoint: String,
    /// From `HF_TOKEN`; sent to `hub_endpoint` only.
    pub hub_token: Option<String>,
    /// Where Hugging Face's tools keep the token; read at each use, so that signing in needs no restart.
    pub hub_token_file: Option<PathBuf>,
    pub mirror_endpoint: String,
    pub modelscope_endpoint: String,
    /// Sent to `modelscope_endpoint` only.
    pub modelscope_token: Option<String>,
    /// The cache of Hugging Face's tools. It is read, never written.
    pub hub_cache: Option<PathBuf>,
}

impl Settings {
    /// `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HOME`, `HF_HUB_CACHE`, `MODELSCOPE_ENDPOINT` or
    /// `MODELSCOPE_DOMAIN`, and `MODELSCOPE_API_TOKEN`, as the hubs' own tools read them.
    pub fn from_env() -> Self {
        let modelscope_domain = filled("MODELSCOPE_DOMAIN")
            .map(|domain| if domain.contains("://") { domain } else { format!("https://{domain}") });
        let hub_home = filled("HF_HOME").map(PathBuf::from).or_else(|| Some(user_cache()?.join("huggingface")));
        Self {
            hub_endpoint: filled("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            hub_token: filled("HF_TOKEN").or_else(|| filled("HUGGING_FACE_HUB_TOKEN")),
            hub_token_file: filled("HF_TOKEN_PATH")
                .map(PathBuf::from)
                .or_else(|| Some(hub_home.as_ref()?.join("token"))),
            mirror_endpoint: "https://hf-mirror.com".to_owned(),
            modelscope_endpoint: filled("MODELSCOPE_ENDPOINT")
                .or(modelscope_domain)
                .unwrap_or_else(|| "https://modelscope.cn".to_owned()),
            modelscope_token: filled("MODELSCOPE_API_TOKEN"),
            hub_cache: filled("HF_HUB_CACHE")
                .or_else(|| filled("HUGGINGFACE_HUB_CACHE"))
                .map(PathBuf::from)
                .or_else(|| Some(hub_home?.join("hub"))),
        }
    }

    /// The token for the hub, unless `HF_ENDPOINT` names the mirror: a mirror is not who gave the token.
    pub(crate) fn hub_token(&self) -> Option<String> {
        let server = |address: &str| {
            let url = Url::parse(address).ok()?;
            Some((url.host_str()?.to_owned(), url.port_or_known_default()))
        };
        if server(&self.hub_endpoint) == server(&self.mirror_endpoint) {
            return None;
        }
        self.hub_token.clone().or_else(|| {
            let text = fs::read_to_string(self.hub_token_file.as_ref()?).ok()?;
            Some(text.trim().to_owned()).filter(|token| !token.is_empty())
        })
    }

    /// Two servers, no tokens, no cache.
    #[cfg(test)]
    pub(crate) fn at(hub: &str, mirror: &str) -> Self {
        Self {
            hub_endpoint: hub.to_owned(),
            hub_token: None,
            hub_token_file: None,
            mirror_endpoint: mirror.to_owned(),
            modelscope_endpoint: "http://127.0.0.1:9".to_owned(),
            modelscope_token: None,
            hub_cache: None,
        }
    }
}

/// The value without space around it; a variable that is empty counts as not set.
fn filled(name: &str) -> Option<String> {
    env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

fn user_cache() -> Option<PathBuf> {
    filled("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cache")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_file_counts_where_there_is_no_variable_and_no_mirror_gets_either() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let mut settings = Settings {
            hub_token_file: Some(file.clone()),
            ..Settings::at("https://hub.invalid", "https://mirror.invalid")
        };
        assert_eq!(settings.hub_token(), None);
        fs::write(&file, "hf_file\n").unwrap();
        assert_eq!(settings.hub_token().as_deref(), Some("hf_file"));
        settings.hub_token = Some("hf_variable".into());
        assert_eq!(settings.hub_token().as_deref(), Some("hf_variable"));
        settings.hub_endpoint = "https://mirror.invalid/".into();
        assert_eq!(settings.hub_token(), None);
    }
}
