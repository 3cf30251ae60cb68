//! Driver: which process listens on a port? Linux tells in `/proc`, other systems are not asked.

/// Name and id of a process that listens on TCP `port`, if this system tells and we may look.
#[cfg(target_os = "linux")]
pub(crate) fn of_port(port: u16) -> Option<String> {
    let socket = listening_socket(port)?;
    let link = format!("socket:[{socket}]");
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(id) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let Ok(files) = std::fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let has_it = files.flatten().any(|file| {
            std::fs::read_link(file.path()).is_ok_and(|to| to.as_os_str() == link.as_str())
        });
        if has_it {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (process {id})", name.trim_end()));
        }
    }
    None
}

/// See the Linux version.
#[cfg(not(target_os = "linux"))]
pub(crate) fn of_port(_: u16) -> Option<String> {
    None
}

/// The inode of the listening socket. Rows: `sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode …`.
#[cfg(target_os = "linux")]
fn listening_socket(port: u16) -> Option<String> {
    const LISTEN: &str = "0A";
    let suffix = format!(":{port:04X}");
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .find_map(|table| {
            let table = std::fs::read_to_string(table).ok()?;
            table.lines().skip(1).find_map(|row| {
                let fields: Vec<&str> = row.split_ascii_whitespace().collect();
                let matches = fields.get(1)?.ends_with(&suffix) && *fields.get(3)? == LISTEN;
                matches.then(|| fields.get(9).map(|inode| (*inode).to_owned()))?
            })
        })
}
