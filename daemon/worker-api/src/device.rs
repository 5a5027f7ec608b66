//! Where tensors live, as a person writes it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `auto`, `cpu` or `cuda:0`; `cuda` alone is the first GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum DevicePick {
    /// The first GPU where there is one that this build can use, else the processor.
    #[default]
    Auto,
    Cpu,
    /// An NVIDIA GPU by its index.
    Cuda(u8),
}

impl fmt::Display for DevicePick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

/// A text that names no device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoDevice;

impl fmt::Display for NoDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected auto, cpu or cuda:0")
    }
}

impl FromStr for DevicePick {
    type Err = NoDevice;

    fn from_str(text: &str) -> Result<Self, NoDevice> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let index = text.strip_prefix("cuda:").ok_or(NoDevice)?;
                index.parse().map(Self::Cuda).map_err(|_| NoDevice)
            }
        }
    }
}

impl TryFrom<String> for DevicePick {
    type Error = NoDevice;

    fn try_from(text: String) -> Result<Self, NoDevice> {
        text.parse()
    }
}

impl From<DevicePick> for String {
    fn from(device: DevicePick) -> Self {
        device.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for device in [DevicePick::Auto, DevicePick::Cpu, DevicePick::Cuda(0), DevicePick::Cuda(3)] {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        assert_eq!("cuda".parse(), Ok(DevicePick::Cuda(0)));
        for wrong in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "cuda:300", "CPU"] {
            assert_eq!(wrong.parse::<DevicePick>(), Err(NoDevice), "{wrong}");
        }
    }
}
