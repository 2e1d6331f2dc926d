//! `vmshm region` and what prints arguments for VMs, as a user types them.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::Host;
use serde_json::Value;

#[test]
fn a_region_is_created_listed_inspected_and_destroyed() {
    let host = Host::new();
    assert!(host.ok(&["region", "list"]).contains("no regions"));
    let said = host.ok(&["region", "create", "job", "--size", "4M", "--sections", "3", "--open"]);
    assert!(said.contains("4 MiB") && said.contains("3 sections"), "{said}");
    let list: Value = serde_json::from_str(&host.ok(&["region", "list", "--json"])).unwrap();
    assert_eq!(
        (&list[0]["name"], &list[0]["size"], &list[0]["free_sections"]),
        (&Value::from("job"), &Value::from(4 << 20), &Value::from(3))
    );
    assert!(host.ok(&["region", "list"]).contains("job"));
    let seen: Value = serde_json::from_str(&host.ok(&["region", "inspect", "job", "--json"])).unwrap();
    assert_eq!(seen["id"], list[0]["id"]);
    assert_eq!(seen["open"], true);
    assert_eq!(seen["sections"].as_array().unwrap().len(), 3);
    assert_eq!(seen["sections"][2]["state"], "free");
    let text = host.ok(&["region", "inspect", "job"]);
    assert!(text.contains("section 2") && text.contains("open"), "{text}");
    host.ok(&["region", "destroy", "job"]);
    assert_eq!(fs::read_dir(host.regions()).unwrap().count(), 0);
    assert!(host.fails(&["region", "destroy", "job"]).contains("no region \"job\""));
}

#[test]
fn nonsense_is_refused_with_the_value_and_the_cure() {
    let host = Host::new();
    let cases: &[(&[&str], &[&str])] = &[
        (&["x", "--size", "0"], &["0", "8G"]),
        (&["x", "--size", "3G"], &["3 GiB", "4 GiB"]),
        (&["x", "--size", "lots"], &["lots", "8G"]),
        (&["x", "--size", "-1G"], &["-1"]),
        (&["x", "--size", "99999999T"], &["99999999T"]),
        (&["x", "--size", "512T"], &["512 TiB", "--sparse"]),
        (&["x", "--size", "4M", "--sections", "0"], &["\"0\"", "1024"]),
        (&["x", "--size", "4M", "--sections", "2000"], &["2000", "1024"]),
        (&["x", "--size", "4M", "--sections", "99999999999"], &["99999999999"]),
        (&["x", "--size", "4M", "--endpoints", "0"], &["endpoints"]),
        (&["x", "--size", "64K", "--sections", "64"], &["too small", "is enough"]),
        (&["x", "--size", "4M", "--nodes", "4000"], &["node 4000", "nodes with memory"]),
        (&["x", "--size", "4M", "--nodes", "0,x"], &["x"]),
        (&["x", "--size", "4M", "--pages", "3M"], &["3M", "2M"]),
        (&["a/b", "--size", "4M"], &["a/b", "VMSHM_DIR"]),
        (&["", "--size", "4M"], &["empty"]),
        (&[".x", "--size", "4M"], &["begins with '.'"]),
        (&["a\nb", "--size", "4M"], &["control"]),
        (&[&"x".repeat(64), "--size", "4M"], &["64 bytes", "63"]),
    ];
    for (arguments, texts) in cases {
        let mut all = vec!["region", "create"];
        all.extend(*arguments);
        let message = host.fails(&all);
        for text in *texts {
            assert!(message.contains(text), "{arguments:?}: {message}");
        }
        assert!(!message.contains("panicked"), "{message}");
    }
    assert!(fs::read_dir(host.regions()).is_ok_and(|mut dir| dir.next().is_none()));
}

#[test]
fn what_is_no_region_is_shown_and_removed_only_by_force() {
    let host = Host::new();
    host.ok(&["region", "create", "good", "--size", "1M"]);
    fs::write(host.regions().join("foreign"), "not a region at all").unwrap();
    let list = host.ok(&["region", "list"]);
    assert!(list.contains("good") && list.contains("foreign") && list.contains("shorter"), "{list}");
    assert!(host.fails(&["region", "inspect", "foreign"]).contains("no region"));
    assert!(host.fails(&["qemu-args", "foreign", "--section", "0"]).contains("no region"));
    assert!(host.fails(&["serve", "foreign"]).contains("no region"));
    assert!(host.fails(&["region", "destroy", "foreign"]).contains("--force"));
    host.ok(&["region", "destroy", "foreign", "--force"]);
    assert!(!host.regions().join("foreign").exists());
    assert!(host.regions().join("good").exists());
}

#[test]
fn a_creation_that_is_killed_leaves_nothing() {
    let host = Host::new();
    for delay in [0, 2, 5, 10, 20, 40, 80] {
        let mut child = host.command(&["region", "create", "big", "--size", "256M"]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        let _ = child.kill();
        let ended = child.wait().unwrap();
        let files = fs::read_dir(host.regions()).map_or(0, Iterator::count);
        if ended.success() {
            host.ok(&["region", "destroy", "big"]);
        } else if files > 0 {
            // Killed between the naming and the end: then it is whole.
            host.ok(&["region", "inspect", "big"]);
            host.ok(&["region", "destroy", "big"]);
        }
    }
    assert_eq!(fs::read_dir(host.regions()).unwrap().count(), 0);
}

#[test]
fn arguments_for_qemu_name_the_file_and_keep_the_section() {
    let host = Host::new();
    host.ok(&["region", "create", "it's a job, really", "--size", "2M"]);
    let name = "it's a job, really";
    let line = host.ok(&["qemu-args", name, "--section", "1"]);
    // QEMU gets the line as a shell splits it.
    let words = Command::new("sh").args(["-c", &format!("printf '%s\\n' {line}")]).output().unwrap();
    let words = String::from_utf8(words.stdout).unwrap();
    let words: Vec<_> = words.lines().collect();
    assert_eq!(words.len(), 6, "{line}");
    assert!(words[1].contains("it's a job,, really,size=2097152,share=on"), "{line}");
    assert_eq!(words[3], "ivshmem-plain,memdev=vmshm");
    let seen: Value = serde_json::from_str(&host.ok(&["region", "inspect", name, "--json"])).unwrap();
    assert_eq!(seen["sections"][1]["state"], "assigned");
    assert_eq!(seen["sections"][1]["vm_uuid"], words[5]);
    assert_eq!(host.ok(&["qemu-args", name, "--section", "1"]), line);

    let uuid = "12345678-1234-4321-8765-123456789abc";
    let line = host.ok(&["qemu-args", name, "--section", "0", "--uuid", uuid, "--doorbell"]);
    assert!(line.contains(uuid) && line.contains("ivshmem-doorbell,chardev=vmshm,vectors=8"), "{line}");
    let xml = host.ok(&["libvirt-xml", name, "--section", "0", "--uuid", uuid, "--doorbell"]);
    assert!(xml.contains("<msi vectors='8' ioeventfd='on'/>"), "{xml}");
    assert!(
        host.fails(&["qemu-args", name, "--section", "1", "--uuid", uuid]).contains("section 0's already")
    );
    assert!(host.fails(&["qemu-args", name, "--section", "7"]).contains("0 to 1"));
    assert!(host.fails(&["qemu-args", name, "--section", "0", "--uuid", "nonsense"]).contains("nonsense"));
    host.ok(&["region", "release", name, "--section", "1"]);
    let seen: Value = serde_json::from_str(&host.ok(&["region", "inspect", name, "--json"])).unwrap();
    assert_eq!(seen["sections"][1]["state"], "free");
}

#[test]
fn xml_for_libvirt_is_well_formed() {
    let host = Host::new();
    host.ok(&["region", "create", "a&b", "--size", "2M"]);
    for arguments in [&["--doorbell"][..], &[][..]] {
        let mut all = vec!["libvirt-xml", "a&b", "--section", "0"];
        all.extend(arguments);
        let xml = host.ok(&all);
        assert!(xml.contains("a&amp;b") && xml.contains("<uuid>"), "{xml}");
        for (open, close) in [("<!--", "-->"), ("<uuid>", "</uuid>")] {
            assert_eq!(xml.matches(open).count(), xml.matches(close).count(), "{xml}");
        }
    }
}

/// The program where another user can look, too.
fn program_for_all(host: &Host) -> PathBuf {
    fs::set_permissions(host.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = host.dir.path().join("vmshm");
    // Not by this process: the children of other threads would inherit the open file, and a file that is written to cannot be run.
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_vmshm")).arg(&program).status();
    assert!(copied.unwrap().success());
    program
}

/// Whether it worked, and what it said.
fn as_nobody(host: &Host, program: &Path, arguments: &[&str]) -> (bool, String) {
    use std::os::unix::process::CommandExt;
    let output = Command::new(program)
        .args(arguments)
        .env("VMSHM_DIR", host.regions())
        .env("VMSHM_RUN_DIR", host.sockets())
        .current_dir("/")
        .gid(65534)
        .uid(65534)
        .output()
        .unwrap();
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn a_member_may_use_a_region_and_decide_nothing() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can become another user");
        return;
    }
    let host = Host::new();
    host.ok(&["region", "create", "job", "--size", "1M"]);
    host.ok(&["qemu-args", "job", "--section", "1"]);
    // Members of the region's group may read and write it.
    std::os::unix::fs::chown(host.regions().join("job"), None, Some(65534)).unwrap();
    let program = program_for_all(&host);
    let before = host.ok(&["region", "inspect", "job"]);
    for arguments in [
        &["qemu-args", "job", "--section", "0"][..],
        &["qemu-args", "job", "--section", "1"],
        &["region", "release", "job", "--section", "1", "--force"],
        &["region", "destroy", "job", "--force"],
        &["serve", "job", "--socket", "/tmp/never.sock"],
    ] {
        let (worked, message) = as_nobody(&host, &program, arguments);
        assert!(
            !worked && message.contains("owner") && message.contains("ermission"),
            "{arguments:?}: {message}"
        );
    }
    let (worked, seen) = as_nobody(&host, &program, &["region", "inspect", "job"]);
    assert!(worked && seen.contains("known only to the region's owner"), "{seen}");
    assert_eq!(host.ok(&["region", "inspect", "job"]), before);
}

#[test]
fn a_user_without_rights_is_told_so() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can become another user");
        return;
    }
    let host = Host::new();
    host.ok(&["region", "create", "job", "--size", "1M"]);
    let program = program_for_all(&host);
    let nobody = |arguments: &[&str]| as_nobody(&host, &program, arguments);
    for arguments in [
        &["region", "inspect", "job"][..],
        &["region", "destroy", "job"],
        &["region", "destroy", "job", "--force"],
        &["qemu-args", "job", "--section", "0"],
        &["serve", "job"],
    ] {
        let (worked, message) = nobody(arguments);
        assert!(!worked && message.contains("ermission"), "{arguments:?}: {message}");
    }
    // But a region of their own they may have.
    assert!(nobody(&["region", "create", "own", "--size", "1M"]).0);
    assert!(nobody(&["region", "destroy", "own"]).0);
    host.ok(&["region", "inspect", "job"]);
}

#[test]
fn completions_and_man_pages_are_made_for_every_command() {
    let host = Host::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(host.ok(&["completions", shell]).contains("libvirt-xml"));
    }
    let pages = host.dir.path().join("man/man1");
    host.ok(&["man", pages.to_str().unwrap()]);
    for page in ["vmshm", "vmshm-region-create", "vmshm-serve", "vmshm-doctor", "vmshm-env"] {
        let text = fs::read_to_string(pages.join(format!("{page}.1"))).unwrap();
        assert!(text.contains(".TH"), "{page}");
    }
    let first = fs::read_to_string(pages.join("vmshm.1")).unwrap();
    for variable in ["DIR", "RUN_DIR", "DEVICE", "SECTION", "HEAP", "HEAP_MIN", "LOG"] {
        assert!(first.contains(&format!("VMSHM_{variable}")), "VMSHM_{variable} is not explained: {first}");
    }
    let file = host.dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(host.fails(&["man", file.to_str().unwrap()]).contains("cannot"));
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let host = Host::new();
    host.ok(&["region", "create", "job", "--size", "4M", "--sections", "8"]);
    for command in ["completions bash", "region inspect job", "region list --json"] {
        let script =
            format!("{} {command} | head -c 1; exit ${{PIPESTATUS[0]}}", env!("CARGO_BIN_EXE_vmshm"));
        let output =
            Command::new("bash").args(["-c", &script]).env("VMSHM_DIR", host.regions()).output().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
