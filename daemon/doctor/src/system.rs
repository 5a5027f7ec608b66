//! Operating system, processor, memory and clock.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use sysinfo::{MemoryRefreshKind, RefreshKind, System};

use crate::network::ClockOffset;
use crate::{CheckResult, Status};

const GIB: u64 = 1 << 30;

pub(crate) fn os() -> CheckResult {
    let result = CheckResult::new("os", ("Operating system", "操作系统"), ("Linux on x86_64", "Linux x86_64"))
        .found_as_is(format!(
            "{} ({}), kernel {}",
            System::long_os_version().unwrap_or_else(|_| std::env::consts::OS.to_owned()),
            std::env::consts::ARCH,
            System::kernel_version().unwrap_or_else(|_| "?".to_owned()),
        ));
    if cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return result;
    }
    result.status(
        Status::Warn,
        "other systems are not tested yet; if something fails, use Linux on x86_64",
        "其他系统尚未测试，若出现问题请改用 Linux x86_64",
    )
}

pub(crate) fn cpu() -> CheckResult {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = describe_cpu(&info);
    let result = CheckResult::new("cpu", ("Processor", "处理器"), ("AVX2 or better", "支持 AVX2 或更高指令集")).found(
        format!("{}, {cores} cores usable, {}", cpu.model, cpu.features.join(" ")),
        format!("{}，可用 {cores} 核，{}", cpu.model, cpu.features.join(" ")),
    );
    if cpu.features.contains(&"avx2") {
        return result;
    }
    result.status(
        Status::Warn,
        "training works and is slow; use a processor made after 2013, or let the virtual machine pass the host's processor through",
        "可以训练但会很慢；请使用 2013 年以后的处理器，虚拟机请开启 CPU 直通",
    )
}

struct Cpu {
    model: String,
    features: Vec<&'static str>,
}

/// Reads the text of `/proc/cpuinfo`.
fn describe_cpu(info: &str) -> Cpu {
    let value = |key: &str| {
        info.lines().filter_map(|line| line.split_once(':')).find(|(name, _)| name.trim() == key).map(|(_, v)| v.trim())
    };
    let flags = value("flags").unwrap_or_default();
    let features = ["avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16"]
        .into_iter()
        .filter(|feature| flags.split_ascii_whitespace().any(|flag| flag == *feature))
        .collect();
    Cpu { model: value("model name").unwrap_or(std::env::consts::ARCH).to_owned(), features }
}

pub(crate) fn memory() -> CheckResult {
    match measure_memory() {
        Some((total, available)) => judge_memory(total, available),
        None => judge_memory(0, 0).found("unknown", "未知").status(Status::Skip, "", ""),
    }
}

/// Bytes that programs on this machine, or in this container, can have together.
pub fn total_memory() -> Option<u64> {
    measure_memory().map(|(total, _)| total)
}

/// Total and available bytes.
fn measure_memory() -> Option<(u64, u64)> {
    let what = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(what).ok()?;
    let (total, available) = (system.total_memory(), system.available_memory());
    // Inside a container the limit counts, not the machine.
    match system.cgroup_limits() {
        Some(limits) => Some((total.min(limits.total_memory), available.min(limits.free_memory))),
        None => Some((total, available)),
    }
}

fn judge_memory(total: u64, available: u64) -> CheckResult {
    let gib = |bytes: u64| bytes as f64 / GIB as f64;
    let result = CheckResult::new("memory", ("Memory", "内存"), ("at least 2 GiB available", "可用内存不少于 2 GiB"))
        .found(
            format!("{:.1} GiB available of {:.1} GiB", gib(available), gib(total)),
            format!("可用 {:.1} GiB / 共 {:.1} GiB", gib(available), gib(total)),
        );
    match available {
        _ if available >= 2 * GIB => result,
        _ if available >= GIB => result.status(
            Status::Warn,
            "close other programs, or train with a shorter cutoff_len and a smaller batch",
            "请关闭其他程序，或减小 cutoff_len 与批大小",
        ),
        _ => result.status(Status::Fail, "close other programs or add memory", "请关闭其他程序或增加内存"),
    }
}

pub(crate) fn clock(offset: Option<ClockOffset>) -> CheckResult {
    judge_clock(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()), offset)
}

/// A clock far from the servers' is wrong, and encrypted connections fail because of it; where no server has told its
/// own, one before this program's time is.
fn judge_clock(now: u64, offset: Option<ClockOffset>) -> CheckResult {
    const PROGRAM_WRITTEN: u64 = 1_767_225_600;
    const TOLERATED_SECONDS: u64 = 300;
    let (year, month, day) = date(now / 86_400);
    let today = format!("{year}-{month:02}-{day:02}");
    let result = CheckResult::new(
        "clock",
        ("Clock", "系统时钟"),
        ("within 5 minutes of the servers' clocks", "与服务器时间相差不超过 5 分钟"),
    );
    let (result, wrong) = match offset {
        Some(ClockOffset(seconds)) => {
            let found = result.found(
                format!("{today}, {seconds:+} s from a server's"),
                format!("{today}，与服务器相差 {seconds:+} 秒"),
            );
            (found, seconds.unsigned_abs() > TOLERATED_SECONDS)
        }
        None => (result.found_as_is(today), now < PROGRAM_WRITTEN),
    };
    if !wrong {
        return result;
    }
    result.status(
        Status::Warn,
        "set the clock: `sudo timedatectl set-ntp true`; downloads fail while it is wrong",
        "请校准时钟：`sudo timedatectl set-ntp true`，时钟错误会导致下载失败",
    )
}

/// Year, month and day of a number of days since 1970-01-01, counted in eras of 400 years that start in March
/// (Howard Hinnant, `civil_from_days`).
fn date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_features_are_whole_words() {
        let cpu = describe_cpu("model name\t: Some CPU\nflags\t\t: fpu avx2 avx512f_not amx_tile\n");
        assert_eq!(cpu.model, "Some CPU");
        assert_eq!(cpu.features, ["avx2", "amx_tile"]);
    }

    #[test]
    fn little_memory_is_said_before_a_job_dies_of_it() {
        assert_eq!(judge_memory(8 * GIB, 4 * GIB).status, Status::Pass);
        assert_eq!(judge_memory(8 * GIB, GIB + 1).status, Status::Warn);
        assert_eq!(judge_memory(8 * GIB, GIB - 1).status, Status::Fail);
    }

    #[test]
    fn a_clock_that_was_reset_is_noticed() {
        assert_eq!(judge_clock(0, None).status, Status::Warn);
        let right = judge_clock(1_800_000_000, None);
        assert_eq!((right.status, right.found.en.as_str()), (Status::Pass, "2027-01-15"));
        for (seconds, status) in [(-299, Status::Pass), (301, Status::Warn), (-86_400, Status::Warn)] {
            assert_eq!(judge_clock(1_800_000_000, Some(ClockOffset(seconds))).status, status, "{seconds}");
        }
        assert_eq!((date(0), date(11_016), date(20_512)), ((1970, 1, 1), (2000, 2, 29), (2026, 2, 28)));
    }
}
