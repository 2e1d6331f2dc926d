//! `vmshm completions`: for the shells.

use clap::CommandFactory;
use clap_complete::Shell;

/// Options of `vmshm completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  vmshm completions bash > /etc/bash_completion.d/vmshm")]
pub struct Args {
    /// The shell
    shell: Shell,
}

impl Args {
    /// Prints the script.
    pub fn run<C: CommandFactory>(&self) -> anyhow::Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut C::command(), "vmshm", &mut script);
        std::io::Write::write_all(&mut std::io::stdout(), &script)?;
        Ok(())
    }
}
