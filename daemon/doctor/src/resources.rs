//! What the machine has left for a job: memory, and room on a disk.

use std::fs;
use std::path::Path;

/// Memory that new work can take without pushing others out: what the kernel calls available, within the limits of the
/// control groups that this process is in. None where the system does not tell.
pub fn available_memory() -> Option<u64> {
    let machine = meminfo(&fs::read_to_string("/proc/meminfo").ok()?)?;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Some(group_folders(&groups).iter().filter_map(|folder| left_in_group(Path::new(folder))).fold(machine, u64::min))
}

/// Memory of a process that its end gives back.
pub fn memory_of(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    kib(&status, "RssAnon:").unwrap_or(0)
}

/// Bytes that may be written for `folder`, which need not exist yet. None where the system does not tell.
pub fn available_disk(folder: &Path) -> Option<u64> {
    let stat = folder.ancestors().find_map(|folder| rustix::fs::statvfs(folder).ok())?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

fn meminfo(text: &str) -> Option<u64> {
    kib(text, "MemAvailable:")
}

/// The bytes of a line such as `MemAvailable:   123 kB`.
fn kib(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Folders of the groups of `/proc/self/cgroup`, versions 1 and 2, each with the groups around it.
fn group_folders(groups: &str) -> Vec<String> {
    let mut folders = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let root = match controllers {
            "" => "/sys/fs/cgroup",
            _ if controllers.split(',').any(|controller| controller == "memory") => "/sys/fs/cgroup/memory",
            _ => continue,
        };
        let around = Path::new(path).ancestors().filter(|group| group.parent().is_some());
        folders.extend(around.map(|group| format!("{root}{}", group.display())));
        // In a container the group's own folder is the root.
        folders.push(root.to_owned());
    }
    folders
}

/// Limit less usage. Pages of files that were read and are not in use can go at any time.
fn left_in_group(folder: &Path) -> Option<u64> {
    let number = |names: [&str; 2]| {
        let text = names.iter().find_map(|name| fs::read_to_string(folder.join(name)).ok())?;
        text.trim().parse::<u64>().ok()
    };
    let limit = number(["memory.max", "memory.limit_in_bytes"])?;
    let used = number(["memory.current", "memory.usage_in_bytes"])?;
    let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let field = |name: &str| {
        let line = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse::<u64>().ok()).unwrap_or(0)
    };
    let files = field("inactive_file") + field("active_file");
    Some(limit.saturating_sub(used.saturating_sub(files)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_leaves_its_limit_less_what_cannot_be_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("memory.max", "1000\n");
        write("memory.current", "700\n");
        write("memory.stat", "anon 400\ninactive_file 200\nactive_file 50\n");
        assert_eq!(left_in_group(folder.path()), Some(1000 - 450));
        write("memory.max", "max\n");
        assert_eq!(left_in_group(folder.path()), None);
    }

    #[test]
    fn every_group_around_this_process_counts() {
        assert_eq!(group_folders("0::/a/b\n"), ["/sys/fs/cgroup/a/b", "/sys/fs/cgroup/a", "/sys/fs/cgroup"]);
        assert_eq!(
            group_folders("5:cpu,memory:/x\n4:devices:/x\n"),
            ["/sys/fs/cgroup/memory/x", "/sys/fs/cgroup/memory"]
        );
    }

    #[test]
    fn this_machine_has_memory_and_this_process_takes_some() {
        assert_eq!(meminfo("MemTotal: 9 kB\nMemAvailable:    5 kB\n"), Some(5 * 1024));
        assert!(available_memory().is_some_and(|bytes| bytes > 0));
        assert!(memory_of(std::process::id()) > 0);
        assert!(available_disk(Path::new("/no/such/folder")).is_some_and(|bytes| bytes > 0));
    }
}
