//! The graphics processor and its driver.

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

use crate::CheckResult;

/// Having none is fine: everything works on the processor.
pub(crate) fn gpu() -> CheckResult {
    let result = CheckResult::new("gpu", ("GPU", "显卡"), ("optional", "可选"));
    match describe() {
        Ok(found) if !found.is_empty() => result
            .found(format!("{found}; this version trains on the processor"), format!("{found}；本版本使用处理器训练")),
        Ok(_) | Err(_) => {
            result.found("no NVIDIA GPU; the processor will be used", "未发现 NVIDIA 显卡，将使用处理器（CPU）")
        }
    }
}

/// Names, free memory and driver. The driver's own library is loaded at run time; without it there is no GPU to use.
fn describe() -> Result<String, NvmlError> {
    let nvml = Nvml::init()?;
    let driver = nvml.sys_driver_version()?;
    let mut found = Vec::new();
    for index in 0..nvml.device_count()? {
        let device = nvml.device_by_index(index)?;
        let memory = device.memory_info()?;
        found.push(format!("{} ({} of {} MiB free)", device.name()?, memory.free >> 20, memory.total >> 20));
    }
    Ok(if found.is_empty() { String::new() } else { format!("{}, driver {driver}", found.join(", ")) })
}
