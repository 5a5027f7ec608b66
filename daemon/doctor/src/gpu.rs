//! Graphics processors: the driver, what it says of each, and the libraries that training on one needs beside it.

use std::fs;

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

use crate::{CheckResult, Status};

const GIB: u64 = 1 << 30;
/// The first with tensor cores.
const OLDEST_CAPABILITY: (i32, i32) = (7, 0);
const OLDEST_CUDA: i32 = 12;

/// What the driver's own library says. It is loaded at run time; without it there is no GPU to use.
#[derive(Debug, Clone)]
struct Driver {
    version: String,
    /// The newest CUDA that it serves.
    cuda: (i32, i32),
    devices: Vec<Device>,
}

#[derive(Debug, Clone)]
struct Device {
    name: String,
    free: u64,
    total: u64,
    capability: (i32, i32),
}

/// Having none is fine: everything works on the processor.
pub(crate) fn checks() -> Vec<CheckResult> {
    let driver = ask_driver().ok();
    let driver = driver.as_ref();
    let devices = driver.map_or(&[][..], |driver| &driver.devices);
    let cuda = driver.map_or(OLDEST_CUDA, |driver| driver.cuda.0);
    vec![
        gpu(devices),
        driver_version(driver, devices.is_empty() && has_nvidia_card()),
        memory(devices),
        capability(devices),
        nvrtc(devices, cuda, find_library(&["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"])),
        nccl(devices, cuda, find_library(&["libnccl.so.2", "libnccl.so"])),
    ]
}

fn ask_driver() -> Result<Driver, NvmlError> {
    let nvml = Nvml::init()?;
    let cuda = nvml.sys_cuda_driver_version()?;
    let mut devices = Vec::new();
    for index in 0..nvml.device_count()? {
        let device = nvml.device_by_index(index)?;
        let memory = device.memory_info()?;
        let capability = device.cuda_compute_capability()?;
        devices.push(Device {
            name: device.name()?,
            free: memory.free,
            total: memory.total,
            capability: (capability.major, capability.minor),
        });
    }
    // 12040 is 12.4.
    Ok(Driver { version: nvml.sys_driver_version()?, cuda: (cuda / 1000, cuda % 1000 / 10), devices })
}

/// Whether the bus has a graphics card of NVIDIA's (vendor 10de, class 03), driver or not.
fn has_nvidia_card() -> bool {
    let Ok(devices) = fs::read_dir("/sys/bus/pci/devices") else { return false };
    let starts = |device: &fs::DirEntry, file: &str, start: &str| {
        fs::read_to_string(device.path().join(file)).is_ok_and(|text| text.starts_with(start))
    };
    devices.flatten().any(|device| starts(&device, "vendor", "0x10de") && starts(&device, "class", "0x03"))
}

/// The first of `names` that this machine's loader finds.
fn find_library(names: &[&'static str]) -> Option<&'static str> {
    // SAFETY: NVIDIA's libraries do nothing when they are loaded but set up their own state.
    names.iter().copied().find(|name| unsafe { libloading::Library::new(*name) }.is_ok())
}

fn gpu(devices: &[Device]) -> CheckResult {
    let result = CheckResult::new("gpu", ("GPU", "显卡"), ("optional", "可选"));
    if devices.is_empty() {
        return result.found("no NVIDIA GPU; the processor will be used", "未发现 NVIDIA 显卡，将使用处理器（CPU）");
    }
    let names = devices.iter().map(|device| device.name.as_str()).collect::<Vec<_>>().join(", ");
    result.found(format!("{names}; this version trains on the processor"), format!("{names}；本版本使用处理器训练"))
}

fn driver_version(driver: Option<&Driver>, card_without_driver: bool) -> CheckResult {
    let result = CheckResult::new(
        "driver",
        ("GPU driver", "显卡驱动"),
        ("for NVIDIA, one that serves CUDA 12 or newer", "NVIDIA 显卡需支持 CUDA 12 或更高"),
    );
    let fix = (
        "install NVIDIA's driver 525 or newer, from your system's packages or nvidia.com/drivers; in a container, start it with the GPU (`--gpus all`)",
        "请安装 525 或更新的 NVIDIA 驱动（系统软件包或 nvidia.com/drivers）；容器请带 GPU 启动（`--gpus all`）",
    );
    match driver {
        Some(Driver { version, cuda: (major, minor), .. }) => {
            let result = result.found_as_is(format!("{version}, CUDA {major}.{minor}"));
            if *major >= OLDEST_CUDA { result } else { result.status(Status::Warn, fix.0, fix.1) }
        }
        None if card_without_driver => result
            .found("an NVIDIA card without a working driver", "有 NVIDIA 显卡，但驱动不可用")
            .status(Status::Warn, fix.0, fix.1),
        None => not_needed(result),
    }
}

fn memory(devices: &[Device]) -> CheckResult {
    let result = CheckResult::new(
        "vram",
        ("Free GPU memory", "显存余量"),
        ("at least 2 GiB free on a GPU", "至少一块显卡有 2 GiB 可用显存"),
    );
    let Some(most) = devices.iter().map(|device| device.free).max() else { return not_needed(result) };
    let gib = |bytes: u64| bytes as f64 / GIB as f64;
    let each = |between: &str| {
        let one = |device: &Device| format!("{:.1}{between}{:.1} GiB", gib(device.free), gib(device.total));
        devices.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    let result = result.found(each(" of "), each(" / "));
    if most >= 2 * GIB {
        return result;
    }
    result.status(
        Status::Warn,
        "end other programs on the GPU; `nvidia-smi` lists them",
        "请结束占用显卡的其他程序，可用 `nvidia-smi` 查看",
    )
}

fn capability(devices: &[Device]) -> CheckResult {
    let result = CheckResult::new(
        "compute_capability",
        ("GPU compute capability", "显卡计算能力"),
        ("7.0 or newer; bf16 from 8.0 on", "7.0 或更高；8.0 起支持 bf16"),
    );
    let Some(newest) = devices.iter().map(|device| device.capability).max() else { return not_needed(result) };
    let each: Vec<_> =
        devices.iter().map(|Device { capability: (major, minor), .. }| format!("{major}.{minor}")).collect();
    let result = result.found_as_is(each.join(", "));
    if newest >= OLDEST_CAPABILITY {
        return result;
    }
    result.status(
        Status::Warn,
        "this GPU is too old to train on: use the processor, or a GPU of 2018 or later",
        "该显卡过旧，无法用于训练：请使用处理器，或更换 2018 年以后的显卡",
    )
}

fn nvrtc(devices: &[Device], cuda: i32, found: Option<&str>) -> CheckResult {
    let result = CheckResult::new(
        "nvrtc",
        ("CUDA run-time compiler (NVRTC)", "CUDA 运行时编译器（NVRTC）"),
        ("libnvrtc, where there is an NVIDIA GPU", "有 NVIDIA 显卡时需要 libnvrtc"),
    );
    library(result, !devices.is_empty(), found, &format!("nvidia-cuda-nvrtc-cu{cuda}"))
}

fn nccl(devices: &[Device], cuda: i32, found: Option<&str>) -> CheckResult {
    let result = CheckResult::new(
        "nccl",
        ("GPU to GPU library (NCCL)", "多卡通信库（NCCL）"),
        ("libnccl, where there are several NVIDIA GPUs", "有多块 NVIDIA 显卡时需要 libnccl"),
    );
    library(result, devices.len() > 1, found, &format!("nvidia-nccl-cu{cuda}"))
}

fn library(result: CheckResult, needed: bool, found: Option<&str>, package: &str) -> CheckResult {
    match found {
        Some(name) => result.found_as_is(name),
        None if !needed => not_needed(result),
        None => result.found("not there", "未找到").status(
            Status::Warn,
            format!("`pip install {package}` brings it without administrator rights; put its lib folder into LD_LIBRARY_PATH before the daemon starts"),
            format!("`pip install {package}` 即可安装，无需管理员权限；启动守护进程前把其 lib 目录加入 LD_LIBRARY_PATH"),
        ),
    }
}

fn not_needed(result: CheckResult) -> CheckResult {
    result.found("not needed here", "本机不需要").status(Status::Skip, "", "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(free: u64, capability: (i32, i32)) -> Device {
        Device { name: "GPU".into(), free, total: 8 * GIB, capability }
    }

    #[test]
    fn a_machine_without_a_gpu_needs_nothing() {
        let none =
            [memory(&[]), capability(&[]), nvrtc(&[], 12, None), nccl(&[], 12, None), driver_version(None, false)];
        assert!(none.iter().all(|result| result.status == Status::Skip), "{none:?}");
        assert_eq!(gpu(&[]).status, Status::Pass);
    }

    #[test]
    fn each_limit_of_a_gpu_has_its_fix() {
        assert_eq!(driver_version(None, true).status, Status::Warn);
        let driver = |cuda| Driver { version: "1".into(), cuda, devices: Vec::new() };
        assert_eq!(driver_version(Some(&driver((11, 8))), false).status, Status::Warn);
        assert_eq!(driver_version(Some(&driver((12, 4))), false).status, Status::Pass);
        assert_eq!(memory(&[device(GIB, (8, 0)), device(3 * GIB, (8, 0))]).status, Status::Pass);
        assert_eq!(memory(&[device(GIB, (8, 0))]).status, Status::Warn);
        assert_eq!(capability(&[device(GIB, (6, 1))]).status, Status::Warn);
        assert_eq!(capability(&[device(GIB, (7, 5))]).status, Status::Pass);
        let one = [device(GIB, (9, 0))];
        assert!(nvrtc(&one, 13, None).fix.en.contains("nvidia-cuda-nvrtc-cu13"));
        assert_eq!(nvrtc(&one, 13, Some("libnvrtc.so.13")).status, Status::Pass);
        assert_eq!(nccl(&one, 13, None).status, Status::Skip);
        assert_eq!(nccl(&[one.clone(), one].concat(), 13, None).status, Status::Warn);
    }
}
