//! Processes of this host, told from later ones with the same pid by their start time.

use std::fs;

/// A process of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Process {
    /// Its pid.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    pub start: u64,
}

impl Process {
    /// The process that has this pid now.
    pub fn with_pid(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (state, start) = parse_stat(&stat)?;
        // A zombie has ended; it only waits for its parent to notice.
        (state != 'Z' && state != 'X').then_some(Self { pid, start })
    }

    /// Whether this very process still runs.
    pub fn is_alive(&self) -> bool {
        self.pid != 0 && Self::with_pid(self.pid) == Some(*self)
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
        assert!(!Process { pid: 0, start: 0 }.is_alive());
        assert!(Process::with_pid(u32::MAX).is_none());
    }

    #[test]
    fn names_with_parentheses_do_not_shift_the_fields() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 0";
        assert_eq!(parse_stat(stat), Some(('S', 4242)));
        assert_eq!(parse_stat("7 (a"), None);
    }
}
