//! A peer that is killed in the middle of a rendezvous, beside one that lives.

use std::env;
use std::io::{BufRead, BufReader, Write, stdin};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use super::ucp::{Context, Endpoint, Worker, wait_until};

/// Variable of a child's environment: its part in the test.
pub const ROLE: &str = "VMSHM_UCX_TEST_ROLE";

/// Beginning of the lines that children say.
const MARK: &str = "peer: ";

/// Tag and length of messages that come back.
const ECHO: (u64, usize) = (1, 1000);
/// Tag and length of the message that is never whole.
const LONG: (u64, usize) = (2, 64 << 20);

/// A process with a worker, which knows the test's.
struct Peer {
    child: Child,
    /// What it says.
    lines: Receiver<String>,
    endpoint: Endpoint,
}

impl Peer {
    fn start(worker: &Arc<Worker>, role: &str) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "tests::killed_peer::peer", "--ignored", "--nocapture"]).env(ROLE, role);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        writeln!(child.stdin.as_mut().unwrap(), "{}", words(&worker.address())).unwrap();
        let (say, lines) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        // Reading waits, and the test must make progress meanwhile.
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some((_, said)) = line.split_once(MARK) {
                    let _ = say.send(said.to_owned());
                }
            }
        });
        let address = bytes(&lines.recv_timeout(Duration::from_secs(60)).expect("the peer's address"));
        let endpoint = worker.connect(&address);
        Self { child, lines, endpoint }
    }

    /// Sends a message there and back.
    fn ping(&self, byte: u8) {
        let request = self.endpoint.worker.receive(ECHO.0, ECHO.1);
        self.endpoint.send(ECHO.0, vec![byte; ECHO.1]).wait().expect("sent");
        assert!(request.wait().expect("it comes back") == [byte; ECHO.1]);
    }

    /// Kills it, and returns when it is gone.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn words(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte} ")).collect()
}

fn bytes(words: &str) -> Vec<u8> {
    words.split_whitespace().map(|word| word.parse().unwrap()).collect()
}

/// Life of a child, until it is killed.
#[test]
#[ignore = "a part of others"]
fn peer() {
    let Ok(role) = env::var(ROLE) else { return };
    // SAFETY: plain numbers. The child does not outlive the test.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    let worker = Worker::new(&Context::new());
    println!("{MARK}{}", words(&worker.address()));
    let mut line = String::new();
    stdin().lock().read_line(&mut line).unwrap();
    let endpoint = worker.connect(&bytes(&line));
    match role.as_str() {
        "echoes" => loop {
            let message = worker.receive(ECHO.0, ECHO.1).wait().unwrap();
            endpoint.send(ECHO.0, message).wait().unwrap();
        },
        "takes" => {
            let request = worker.receive(LONG.0, LONG.1);
            wait_until(&worker, "the first piece", || request.first_byte() != 0);
            println!("{MARK}under way");
            loop {
                thread::park();
            }
        }
        _ => {
            let _request = endpoint.send(LONG.0, vec![0xff; LONG.1]);
            loop {
                worker.progress();
            }
        }
    }
}

/// Kills a peer in the middle of a message that it `role`s.
fn kill_in_the_middle(role: &str) {
    let worker = Worker::new(&Context::new());
    let friend = Peer::start(&worker, "echoes");
    let mut doomed = Peer::start(&worker, role);
    friend.ping(1);
    let request = match role {
        "takes" => {
            let request = doomed.endpoint.send(LONG.0, vec![0xff; LONG.1]);
            wait_until(&worker, "half a message", || doomed.lines.try_recv().is_ok());
            request
        }
        _ => {
            let request = worker.receive(LONG.0, LONG.1);
            // No more of it comes without progress here.
            wait_until(&worker, "the first piece", || request.first_byte() != 0);
            request
        }
    };
    doomed.kill();
    for number in 0..100 {
        friend.ping(number);
    }
    let status = request.wait().expect_err("half a message");
    wait_until(&worker, "the endpoint's failure", || doomed.endpoint.failure() != 0);
    assert!(status < 0 && doomed.endpoint.failure() < 0);
    for number in 0..100 {
        friend.ping(number);
    }
    assert_eq!(friend.endpoint.failure(), 0);
}

#[test]
fn a_receiver_killed_in_the_middle_fails_its_endpoint_alone() {
    let _use = super::beside_others();
    kill_in_the_middle("takes");
}

#[test]
fn a_sender_killed_in_the_middle_fails_its_endpoint_alone() {
    let _use = super::beside_others();
    kill_in_the_middle("gives");
}
