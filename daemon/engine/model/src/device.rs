//! The device that a person asks for, on this machine.

use burn::tensor::Device;
use justtrain_kernels::device::{CUDA, cuda_devices, try_kernel};
use justtrain_worker_api::{DevicePick, Problem, ProblemCode};

/// What `pick` means here, never [`DevicePick::Auto`], and the device itself. `InvalidValue` for a GPU that is not there
/// or cannot be used.
pub fn open(pick: DevicePick) -> Result<(DevicePick, Device), Problem> {
    choose(pick, &cuda_devices(), try_kernel)
}

fn choose(pick: DevicePick, gpus: &[Device], works: impl Fn(&Device) -> bool) -> Result<(DevicePick, Device), Problem> {
    let cpu = (DevicePick::Cpu, Device::flex());
    match pick {
        DevicePick::Cpu => Ok(cpu),
        DevicePick::Auto => match gpus.first().filter(|gpu| works(gpu)) {
            Some(gpu) => Ok((DevicePick::Cuda(0), gpu.clone())),
            None => Ok(cpu),
        },
        DevicePick::Cuda(index) => match gpus.get(usize::from(index)) {
            Some(gpu) if works(gpu) => Ok((pick, gpu.clone())),
            Some(_) => Err(unusable(pick)),
            None if CUDA => Err(absent(pick, gpus.len())),
            None => Err(other_download(pick)),
        },
    }
}

fn refused(pick: DevicePick, en: &str, zh: &str) -> Problem {
    Problem::error(ProblemCode::InvalidValue, en, zh).key("device").found(pick)
}

fn absent(pick: DevicePick, gpus: usize) -> Problem {
    let known: Vec<_> = (0..gpus).map(|index| format!("cuda:{index}")).collect();
    refused(pick, "there is no such GPU on this machine", "本机没有这块显卡")
        .expected([vec!["auto".to_owned(), "cpu".to_owned()], known].concat().join(" | "))
        .fix(
            "name a device that is there; where a GPU is missing, `justtrain doctor` says why",
            "请写一个存在的设备；如果缺少显卡，`justtrain doctor` 会说明原因",
        )
}

fn unusable(pick: DevicePick) -> Problem {
    refused(
        pick,
        "the GPU is there and cannot run a program: NVIDIA's compiler NVRTC or the CUDA headers are missing, or newer than the driver",
        "显卡存在但无法运行程序：缺少 NVIDIA 编译器 NVRTC 或 CUDA 头文件，或其版本比驱动新",
    )
    .fix(
        "`justtrain doctor` says what is missing; docs/guides/gpu.md has the two packages to install",
        "`justtrain doctor` 会说明缺少什么；docs/guides/gpu.zh-CN.md 列出了需要安装的两个软件包",
    )
}

fn other_download(pick: DevicePick) -> Problem {
    refused(pick, "this download trains on the processor only", "此下载版本只能使用处理器训练")
        .expected("auto | cpu")
        .fix(
            "install justtrain-VERSION-linux-x86_64-cuda.zip, or write device: auto",
            "请安装 justtrain-VERSION-linux-x86_64-cuda.zip，或写 device: auto",
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Any devices will do to count: these stand for GPUs.
    fn gpus(count: usize) -> Vec<Device> {
        vec![Device::flex(); count]
    }

    fn pick(pick: DevicePick, count: usize, works: bool) -> Result<DevicePick, Problem> {
        choose(pick, &gpus(count), |_| works).map(|(pick, _)| pick)
    }

    #[test]
    fn auto_takes_a_gpu_that_works_and_else_the_processor() {
        assert_eq!(pick(DevicePick::Auto, 2, true), Ok(DevicePick::Cuda(0)));
        assert_eq!(pick(DevicePick::Auto, 2, false), Ok(DevicePick::Cpu));
        assert_eq!(pick(DevicePick::Auto, 0, true), Ok(DevicePick::Cpu));
        assert_eq!(pick(DevicePick::Cpu, 2, true), Ok(DevicePick::Cpu));
    }

    #[test]
    fn a_gpu_that_cannot_be_used_is_refused_with_the_reason() {
        assert_eq!(pick(DevicePick::Cuda(1), 2, true), Ok(DevicePick::Cuda(1)));
        let broken = pick(DevicePick::Cuda(1), 2, false).unwrap_err();
        assert!(broken.to_string().contains("NVRTC"), "{broken}");
        let missing = absent(DevicePick::Cuda(3), 2);
        assert_eq!(missing.expected.as_deref(), Some("auto | cpu | cuda:0 | cuda:1"));
        assert_eq!(missing.found.as_deref(), Some("cuda:3"));
        let nowhere = pick(DevicePick::Cuda(3), 2, true).unwrap_err();
        assert_eq!(nowhere, if CUDA { missing } else { other_download(DevicePick::Cuda(3)) });
        assert!(other_download(DevicePick::Cuda(0)).fix.en.contains("-cuda.zip"));
    }
}
