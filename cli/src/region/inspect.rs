//! `vmshm region inspect`.

use std::io::Write;

use vmshm_host::{Inspection, Process, Registry, Section, Traffic, format_bytes, inspect};

/// Options of `vmshm region inspect`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the region, or the path of its file
    name: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Prints everything known of the region.
    pub fn run(&self) -> anyhow::Result<()> {
        let region = Registry::from_env().open(&self.name)?;
        let seen = inspect(&region)?;
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::to_string_pretty(&seen)?)?;
        } else {
            print(&mut out, &seen)?;
        }
        Ok(())
    }
}

fn print(out: &mut impl Write, seen: &Inspection) -> std::io::Result<()> {
    writeln!(out, "region     {}", seen.name)?;
    writeln!(out, "file       {}", seen.path.display())?;
    writeln!(out, "id         {} (layout version {})", seen.id, seen.version)?;
    writeln!(
        out,
        "memory     {} in pages of {}, {} allocated",
        format_bytes(seen.size),
        format_bytes(seen.page_len),
        if seen.allocated >= seen.size { "all".to_owned() } else { format_bytes(seen.allocated) }
    )?;
    let rule = if seen.open { "open: every member may write" } else { "each written by its member alone" };
    writeln!(out, "sections   {}, {rule}", seen.sections.len())?;
    let server = match seen.served {
        Some(true) => "running",
        Some(false) => "none",
        None => "known only to the region's owner",
    };
    writeln!(out, "server     {server}")?;
    let mut users: Vec<_> = seen.users.iter().map(|&pid| format!("{pid} ({})", Process::name(pid))).collect();
    if seen.hidden_processes > 0 {
        users
            .push(format!("and whoever is among {} processes that only root can see", seen.hidden_processes));
    }
    writeln!(out, "users      {}", if users.is_empty() { "none".to_owned() } else { users.join(", ") })?;
    for section in &seen.sections {
        print_section(out, section)?;
    }
    Ok(())
}

fn print_section(out: &mut impl Write, s: &Section) -> std::io::Result<()> {
    writeln!(out)?;
    writeln!(out, "section {}  {} at {:#x}", s.section, format_bytes(s.len), s.offset)?;
    write!(out, "  state    {}, generation {}", s.state, s.generation)?;
    if let (Some(pid), Some(alive)) = (s.owner_pid, s.owner_alive) {
        let name = if alive { Process::name(pid) } else { "ended".to_owned() };
        write!(out, ", by pid {pid} ({name})")?;
    }
    if let Some(id) = s.vm_id {
        write!(out, ", as VM {id} of the ivshmem server")?;
    }
    writeln!(out)?;
    writeln!(out, "  VM uuid  {}", s.vm_uuid)?;
    let found: Vec<_> = s.nodes_found.iter().map(i32::to_string).collect();
    writeln!(
        out,
        "  node     asked for: {}; found: {}",
        s.node.map_or("any".to_owned(), |node| node.to_string()),
        if found.is_empty() { "nothing allocated".to_owned() } else { found.join(", ") }
    )?;
    if !s.host_users.is_empty() {
        let list: Vec<_> = s.host_users.iter().map(u32::to_string).collect();
        writeln!(out, "  host     used by pids {}", list.join(", "))?;
    }
    for e in &s.endpoints {
        writeln!(
            out,
            "  endpoint {}: {}, life {}, pid {} {}, heartbeat {}{}",
            e.slot,
            e.state,
            e.incarnation,
            e.pid,
            match e.alive {
                Some(true) => "on this host, alive",
                Some(false) => "on this host, dead",
                None => "in its VM",
            },
            e.heartbeat,
            match (e.may_sleep, e.sleeping) {
                (_, true) => ", sleeps",
                (true, false) => ", may sleep",
                (false, false) => "",
            }
        )?;
        for traffic in &e.traffic {
            print_traffic(out, traffic)?;
        }
    }
    Ok(())
}

fn print_traffic(out: &mut impl Write, t: &Traffic) -> std::io::Result<()> {
    let ways = [
        ("messages in the ring", t.inline, t.inline_bytes),
        ("fragments", t.fragments, t.fragment_bytes),
        ("gets", t.gets, t.get_bytes),
        ("puts", t.puts, t.put_bytes),
    ];
    let used: Vec<_> = ways
        .iter()
        .filter(|(_, count, _)| *count > 0)
        .map(|(way, count, bytes)| format!("{count} {way} ({})", format_bytes(*bytes)))
        .collect();
    writeln!(out, "    of section {}, endpoint {}: {}", t.section, t.slot, used.join(", "))
}
