//! Processes of this host, told from later ones with the same pid by their start time.

use std::fs;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

/// A process of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Process {
    /// Its pid.
    pub pid: u32,
    /// When it started, in clock ticks since boot; 0 where `/proc` does not show it to us.
    pub start: u64,
}

/// Answer of `/proc` about a pid.
enum Seen {
    Runs { start: u64 },
    Ended,
    Hidden,
}

fn look(pid: u32) -> Seen {
    match fs::read_to_string(format!("/proc/{pid}/stat")).ok().as_deref().map(parse_stat) {
        // A zombie has ended; it only waits for its parent to notice.
        Some(Some(('Z' | 'X', _))) => Seen::Ended,
        Some(Some((_, start))) => Seen::Runs { start },
        // With hidepid, `/proc` shows other users' processes as if they were not there.
        _ => match libc::pid_t::try_from(pid).map(|pid| kill(Pid::from_raw(pid), None)) {
            Err(_) | Ok(Err(Errno::ESRCH)) => Seen::Ended,
            Ok(_) => Seen::Hidden,
        },
    }
}

impl Process {
    /// The process that has this pid now.
    pub fn with_pid(pid: u32) -> Option<Self> {
        match look(pid) {
            Seen::Runs { start } => Some(Self { pid, start }),
            Seen::Ended | Seen::Hidden => None,
        }
    }

    /// Whether this is known to be one certain process. A process of another pid namespace has pid 0 here.
    pub fn is_known(&self) -> bool {
        self.pid != 0 && self.start != 0
    }

    /// Whether this very process still runs. One that cannot be told is taken for running.
    pub fn is_alive(&self) -> bool {
        match look(self.pid) {
            _ if self.pid == 0 => true,
            Seen::Runs { start } => !self.is_known() || start == self.start,
            Seen::Ended => false,
            Seen::Hidden => true,
        }
    }

    /// The process's name, or a question mark.
    pub fn name(pid: u32) -> String {
        fs::read_to_string(format!("/proc/{pid}/comm")).map_or_else(
            |_| "?".to_owned(),
            |comm| comm.trim().chars().filter(|c| !c.is_control()).collect::<String>(),
        )
    }
}

/// State and start time, which stand behind the name in parentheses (that may contain anything).
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives_and_an_earlier_one_with_its_pid_does_not() {
        let me = Process::with_pid(std::process::id()).unwrap();
        assert!(me.is_alive());
        assert!(!Process { start: me.start.wrapping_sub(1), ..me }.is_alive());
        assert!(Process::with_pid(u32::MAX).is_none());
        assert!(!Process { pid: u32::MAX, ..me }.is_alive());
    }

    #[test]
    fn who_cannot_be_told_is_taken_for_living() {
        let hidden = Process { pid: std::process::id(), start: 0 };
        let foreign = Process { pid: 0, start: 0 };
        assert!(hidden.is_alive() && !hidden.is_known());
        assert!(foreign.is_alive() && !foreign.is_known());
        assert!(!Process { pid: u32::MAX, start: 0 }.is_alive());
    }

    #[test]
    fn names_with_parentheses_do_not_shift_the_fields() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 0";
        assert_eq!(parse_stat(stat), Some(('S', 4242)));
        assert_eq!(parse_stat("7 (a"), None);
    }
}
