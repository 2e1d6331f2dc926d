//! `vmshm env` and `vmshm doctor`, as a user types them.

mod common;

use std::fs;
use std::process::Command;

use common::Host;

#[test]
fn the_environment_makes_open_mpi_find_the_plugin() {
    let host = Host::new();
    assert!(host.fails(&["env", "--prefix", "/nowhere"]).contains("xtask install --prefix /nowhere"));
    assert!(host.fails(&["env"]).contains("--prefix"));
    let prefix = host.dir.path().join("a prefix");
    fs::create_dir_all(prefix.join("bin")).unwrap();
    fs::create_dir_all(prefix.join("lib/openmpi")).unwrap();
    fs::write(prefix.join("lib/openmpi/mca_btl_vmshm.so"), "").unwrap();
    let tool = prefix.join("bin/vmshm");
    fs::copy(env!("CARGO_BIN_EXE_vmshm"), &tool).unwrap();
    host.ok(&["region", "create", "job", "--size", "1M"]);
    let script = "eval \"$(\"$0\" env --region job)\" && eval \"$(\"$0\" env --region job)\" && \
                  printf '%s\\n%s\\n' \"$OMPI_MCA_mca_base_component_path\" \"$OMPI_MCA_btl_vmshm_device\"";
    let output = Command::new("sh")
        .args(["-c", script])
        .arg(&tool)
        .env("VMSHM_DIR", host.regions())
        .env_remove("OMPI_MCA_mca_base_component_path")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let expected = format!(
        "{}:SYSTEM_DEFAULT:USER_DEFAULT\n{}\n",
        prefix.join("lib/openmpi").display(),
        host.regions().join("job").display()
    );
    assert_eq!(text, expected, "{}", String::from_utf8_lossy(&output.stderr));
    assert!(host.fails(&["env", "--prefix", prefix.to_str().unwrap(), "--region", "none"]).contains("none"));

    // The plugin for another Open MPI, beside the first one.
    let refused = host.fails(&["env", "--prefix", prefix.to_str().unwrap(), "--mpi", "5.0.7"]);
    assert!(refused.contains("lib/openmpi-5.0.7") && refused.contains("--with-mpi"), "{refused}");
    let other = prefix.join("lib/openmpi-5.0.7");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("mca_btl_vmshm.so"), "").unwrap();
    let said = host.ok(&["env", "--prefix", prefix.to_str().unwrap(), "--mpi", "5.0.7"]);
    assert!(said.contains("lib/openmpi-5.0.7:SYSTEM_DEFAULT"), "{said}");
    assert!(said.contains("export PMIX_MCA_mca_base_component_path=:"), "{said}");
    assert!(said.contains("export OMPI_MCA_coll_han_bcast_low_module=1\n"), "{said}");

    // Obstacles to the use of vmshm are said beside it, on standard error.
    if Command::new("ompi_info").arg("--version").output().is_ok() {
        for (pml, is_trouble) in [("ob1", false), ("cm", true)] {
            let output = Command::new(&tool).arg("env").env("OMPI_MCA_pml", pml).output().unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.success() && output.stdout.starts_with(b"export "), "{said}");
            let is_told =
                said.contains("the parameter pml is \"cm\"") && said.contains("cure: mpirun --mca pml ob1");
            assert_eq!(is_told, is_trouble, "{said}");
        }
    }

    // LD_PRELOAD cannot name a path with a space.
    let plain = host.dir.path().join("plain");
    fs::rename(&prefix, &plain).unwrap();
    fs::write(plain.join("lib/libvmshm_heap.so"), "").unwrap();
    for (before, expected) in [("", "1"), ("0", "1"), ("verbose", "verbose")] {
        let output = Command::new(plain.join("bin/vmshm"))
            .args(["env", "--heap"])
            .env("VMSHM_HEAP", before)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let found = text.lines().find_map(|line| line.strip_prefix("export VMSHM_HEAP="));
        assert_eq!(found.map(|value| value.trim_matches('\'')), Some(expected), "{text}");
    }
}

#[test]
fn programs_without_open_mpi_get_the_ucx_transport() {
    let host = Host::new();
    let prefix = host.dir.path().join("prefix");
    let put = |name: &str| {
        let file = prefix.join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "").unwrap();
        file
    };
    put("lib/openmpi/mca_btl_vmshm.so");
    let heap = put("lib/libvmshm_heap.so");
    let place = prefix.to_str().unwrap();
    assert!(host.fails(&["env", "--prefix", place, "--ucx"]).contains("no UCX transport is installed"));
    let transport = put("lib/ucx-1.13/libuct_vmshm.so.0");
    let said = host.ok(&["env", "--prefix", place, "--heap", "--ucx"]);
    assert!(
        said.contains(&format!("export LD_PRELOAD={}:{}", heap.display(), transport.display())),
        "{said}"
    );
    put("lib/ucx-1.22/libuct_vmshm.so.0");
    let said = host.ok(&["env", "--prefix", place, "--ucx", "1.22"]);
    assert!(!said.contains("LD_PRELOAD"), "{said}");
    assert!(
        said.contains(&format!("export UCX_PLUGIN_PATH={}", prefix.join("lib/ucx-1.22").display())),
        "{said}"
    );
}

#[test]
fn the_doctor_says_what_is_missing() {
    let host = Host::new();
    let output = host.output(&["doctor", "--guest", "--prefix", "/nowhere"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("missing") && text.contains("cure:"), "{text}");
    assert_eq!(output.status.code(), Some(1));
    host.ok(&["region", "create", "job", "--size", "1M"]);
    let text = String::from_utf8(host.output(&["doctor", "--host"]).stdout).unwrap();
    assert!(text.contains("region job: 1 MiB, 2 of 2 sections free"), "{text}");
    fs::write(host.regions().join("bad"), vec![0xff; 8192]).unwrap();
    let output = host.output(&["doctor", "--host"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("region destroy --force bad"), "{text}");
    assert_eq!(output.status.code(), Some(1));
}
