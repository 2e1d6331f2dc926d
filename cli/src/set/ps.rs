//! `vmshm ps`.

use std::io::Write;

use serde_json::json;
use vmshm_host::format_bytes;

use super::state::{Set, run_dir};

/// Options of `vmshm ps`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A VM `answers` by its ssh port, or by what `vmshm up --ready` names; one that `runs` is not there yet, or does not listen any \
more; one that has `ended` says in NAME.log of the set's folder why. `vmshm vm status` shows where threads and memory are.")]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Prints one line for each VM.
    pub fn run(&self) -> anyhow::Result<()> {
        let mut rows = Vec::new();
        for set in Set::all() {
            let set = match set {
                Ok(set) => set,
                Err(error) => {
                    eprintln!("vmshm: {error:#}");
                    continue;
                }
            };
            rows.extend(set.vms.iter().map(|vm| {
                json!({
                    "set": set.name, "folder": set.dir, "vm": vm.name, "state": set.condition(vm), "node": vm.node,
                    "vcpus": vm.vcpus, "memory": vm.memory, "address": vm.address, "pid": vm.process.pid,
                })
            }));
            if set.vms.is_empty() {
                rows.push(json!({ "set": set.name, "folder": set.dir }));
            }
        }
        let mut out = std::io::stdout();
        if self.json {
            return Ok(writeln!(out, "{}", serde_json::to_string_pretty(&rows)?)?);
        }
        if rows.is_empty() {
            writeln!(
                out,
                "no sets of VMs in {}; `vmshm up NAME --kernel FILE` starts one",
                run_dir().display()
            )?;
            return Ok(());
        }
        let line = |cells: [String; 8]| {
            let [set, vm, state, node, vcpus, memory, address, pid] = cells;
            format!("{set:<16} {vm:<6} {state:<8} {node:>4} {vcpus:>5} {memory:>9} {address:<15} {pid}")
        };
        writeln!(
            out,
            "{}",
            line(["SET", "VM", "STATE", "NODE", "VCPUS", "MEMORY", "ADDRESS", "PID"].map(String::from))
        )?;
        for row in rows {
            let cell = |key: &str| match &row[key] {
                serde_json::Value::Null => "-".to_owned(),
                value => value.as_str().map_or_else(|| value.to_string(), str::to_owned),
            };
            let memory = row["memory"].as_u64().map_or("-".to_owned(), format_bytes);
            let cells = ["set", "vm", "state", "node", "vcpus"].map(cell);
            let [set, vm, state, node, vcpus] = cells;
            writeln!(out, "{}", line([set, vm, state, node, vcpus, memory, cell("address"), cell("pid")]))?;
        }
        Ok(())
    }
}
