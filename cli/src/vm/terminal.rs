//! The terminal as the guest's serial console: every key goes to the guest but for Ctrl-A and what follows.

use std::io::{IsTerminal, Read, stdin};

use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::Pid;
use vmshm_vmm::{Machine, thread};

const CTRL_A: u8 = 1;

/// A terminal that passes every key on, until dropped. None where standard input is no terminal.
pub struct Raw(Option<Termios>);

impl Raw {
    /// Changes the terminal.
    pub fn new() -> Self {
        let old = stdin().is_terminal().then(|| tcgetattr(stdin()).ok()).flatten();
        if let Some(old) = &old {
            let mut raw = old.clone();
            cfmakeraw(&mut raw);
            let _ = tcsetattr(stdin(), SetArg::TCSANOW, &raw);
        }
        Self(old)
    }

    /// Whether there is a terminal.
    pub fn is_terminal(&self) -> bool {
        self.0.is_some()
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(old) = &self.0 {
            let _ = tcsetattr(stdin(), SetArg::TCSANOW, old);
        }
    }
}

/// Passes standard input to the guest, in a thread that ends with the process.
pub fn pass(machine: &Machine, terminal: bool) -> std::io::Result<()> {
    let console = machine.console.clone();
    let stop = || {
        let _ = kill(Pid::this(), Signal::SIGTERM);
    };
    let mut keys = Keys { stop, terminal, escaped: false };
    thread::spawn(thread::Kind::Console, "console", move || {
        let mut buffer = [0; 256];
        while let Ok(len @ 1..) = stdin().read(&mut buffer) {
            console.input(&keys.filter(&buffer[..len]));
        }
    })?;
    Ok(())
}

/// Sees Ctrl-A X, which stops the VM as SIGTERM does, and Ctrl-A Ctrl-A, which is one Ctrl-A for the guest.
struct Keys<F> {
    stop: F,
    terminal: bool,
    escaped: bool,
}

impl<F: FnMut()> Keys<F> {
    fn filter(&mut self, typed: &[u8]) -> Vec<u8> {
        if !self.terminal {
            return typed.to_vec();
        }
        let mut passed = Vec::new();
        for &key in typed {
            match (std::mem::take(&mut self.escaped), key) {
                (false, CTRL_A) => self.escaped = true,
                (true, b'x' | b'X') => (self.stop)(),
                // Any other key after Ctrl-A means nothing.
                (true, key) if key != CTRL_A => {}
                (_, key) => passed.push(key),
            }
        }
        passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(terminal: bool, parts: &[&[u8]]) -> (Vec<u8>, usize) {
        let mut stops = 0;
        let mut keys = Keys { stop: || stops += 1, terminal, escaped: false };
        let passed = parts.iter().flat_map(|part| keys.filter(part)).collect();
        (passed, stops)
    }

    #[test]
    fn ctrl_a_x_stops_and_everything_else_reaches_the_guest() {
        assert_eq!(typed(true, &[b"ls\r\x03x"]), (b"ls\r\x03x".to_vec(), 0));
        assert_eq!(typed(true, &[b"a\x01", b"xb"]), (b"ab".to_vec(), 1));
        assert_eq!(typed(true, &[b"\x01\x01x\x01q"]), (b"\x01x".to_vec(), 0));
    }

    #[test]
    fn a_file_as_input_has_no_special_keys() {
        assert_eq!(typed(false, &[b"\x01x"]), (b"\x01x".to_vec(), 0));
    }
}
