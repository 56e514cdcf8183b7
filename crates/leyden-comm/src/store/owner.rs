//! Who listens on a port, as `/proc` says: at best effort, for a message.

use std::fs;

/// `pid 1234 (python3)`; `None` if it cannot be found out.
pub(crate) fn of(port: u16) -> Option<String> {
    let sockets: Vec<Socket> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .flat_map(|table| listening(&fs::read_to_string(table).unwrap_or_default(), port))
        .collect();
    let socket = sockets.first()?;
    let holder = processes().find(|pid| sockets.iter().any(|socket| holds(*pid, &socket.inode)));
    Some(match holder {
        Some(pid) if pid == std::process::id() => format!("pid {pid}, this process"),
        Some(pid) => {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            format!("pid {pid} ({})", name.trim_end())
        }
        None => format!("a process of user {}", socket.user),
    })
}

struct Socket {
    user: String,
    inode: String,
}

/// Those of a table of the kernel's that listen on `port`.
fn listening(table: &str, port: u16) -> Vec<Socket> {
    const LISTEN: &str = "0A";
    let row = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (_, local) = fields.get(1)?.rsplit_once(':')?;
        let matches = u16::from_str_radix(local, 16) == Ok(port) && *fields.get(3)? == LISTEN;
        let socket = Socket { user: (*fields.get(7)?).to_owned(), inode: (*fields.get(9)?).to_owned() };
        matches.then_some(socket)
    };
    table.lines().skip(1).filter_map(row).collect()
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn holds(pid: u32, inode: &str) -> bool {
    let wanted = format!("socket:[{inode}]");
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    descriptors
        .into_iter()
        .any(|entry| fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == wanted.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_kernel_s_table_is_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                     0: 0100007F:733C 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 41733 1 0\n   \
                     1: 0100007F:733C 0100007F:C350 01 00000000:00000000 00:00000000 00000000  1000        0 41999 1 0\n";
        let found = listening(table, 29_500);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].user.as_str(), found[0].inode.as_str()), ("1000", "41733"));
        assert!(listening(table, 29_501).is_empty());
    }
}
