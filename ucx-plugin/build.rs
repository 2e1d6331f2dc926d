//! Finds the headers of the installed UCX, and binds to them and to what this crate knows of its series.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::exit;

/// The header that names the version.
const VERSION: &str = "uct/api/version.h";

fn main() {
    println!("cargo::rerun-if-env-changed=UCX_DIR");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/ucx");
    println!("cargo::rerun-if-changed=src/tests/ucx.h");
    if let Err(message) = bind() {
        println!("cargo::error={message}");
        exit(1);
    }
}

fn bind() -> Result<(), String> {
    let prefix = env::var_os("UCX_DIR").map(PathBuf::from);
    let includes = prefix.clone().unwrap_or_else(|| "/usr".into()).join("include");
    let (major, minor) = version(&includes)?;
    let series = format!("v{major}_{minor}");
    if !Path::new("src/ucx").join(format!("{series}.h")).exists() {
        return Err(format!(
            "the UCX in {} is version {major}.{minor}, of which src/ucx/ has no description: set UCX_DIR to the prefix of one \
             that it knows",
            includes.display(),
        ));
    }
    let define = format!("-DVMSHM_UCX_SERIES=\"{series}.h\"");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo gave no OUT_DIR")?);
    bindgen::Builder::default()
        .header("src/ucx/shim.h")
        .clang_arg("-Isrc/ucx")
        .clang_arg(format!("-I{}", includes.display()))
        .clang_arg(&define)
        .allowlist_type("vmshm_.*|uct_(component|tl|md|base_(iface|ep))(_t)?")
        .allowlist_type("uct_md_(ops|mem_dereg_params|resource_desc)_t")
        .allowlist_type(
            "uct_(iface_(ops|internal_ops|params|attr|config)|ep_params|completion|pending_req|iov)_t",
        )
        .allowlist_type("uct_(iface_open_mode|md_mem_dereg_field_mask_t|md_mem_dereg_flags_t|atomic_op)")
        .allowlist_function(
            "vmshm_.*|uct_(component_register|tl_register|iface_handle_ep_err|single_device_resource)",
        )
        .allowlist_function(
            "uct_base_(iface|ep)_.*|uct_md_(query_empty_md_resource|query_single_md_resource|config_read)",
        )
        .allowlist_function("uct_config_release|ucs_class_call_cleanup_chain|ucp_get_version")
        // For tests.
        .allowlist_function("uct_(query_components|release_component_list|component_query|md_open|md_close|md_iface_config_read)")
        .allowlist_function("uct_md_query_tl_resources|uct_release_tl_resource_list|uct_worker_(create|destroy)|uct_ep_create")
        .allowlist_function("uct_iface_(open|close|set_am_handler)|ucs_async_context_(create|destroy)")
        .allowlist_var("uct_base_(iface|ep)_t_class|UCT_.*|VMSHM_.*|UCS_SYS_DEVICE_ID_UNKNOWN|vmshm_.*")
        .allowlist_type(
            "ucs_status_t|uct_(iface|md)_.*flag.*|uct_.*_field.*|uct_flush_flags|uct_progress_types",
        )
        .layout_tests(true)
        .generate_comments(false)
        .derive_debug(false)
        .prepend_enum_name(false)
        .parse_callbacks(Box::new(bindgen::CargoCallbacks::new()))
        .generate()
        .map_err(|error| format!("bindgen could not read UCX's headers in {}: {error}", includes.display()))?
        .write_to_file(out.join("ucx.rs"))
        .map_err(|error| format!("cannot write the bindings: {error}"))?;
    bind_programs(&includes, &out)?;
    cc::Build::new()
        .file("src/ucx/shim.c")
        .include("src/ucx")
        // Not searched for what to warn of.
        .flag("-isystem")
        .flag(&includes)
        .define("VMSHM_UCX_SERIES", format!("\"{series}.h\"").as_str())
        .warnings(true)
        .flag_if_supported("-Wno-unused-parameter")
        .compile("vmshm_ucx_shim");
    if let Some(prefix) = prefix {
        for folder in ["lib", "lib64"] {
            println!("cargo::rustc-link-search=native={}", prefix.join(folder).display());
        }
    }
    // The others come with it: had the library their names too, a program whose UCX lies in a place of its own would get them from
    // the system's.
    println!("cargo::rustc-link-lib=dylib=ucp");
    println!("cargo::rustc-env=VMSHM_UCX_MAJOR={major}");
    println!("cargo::rustc-env=VMSHM_UCX_MINOR={minor}");
    // UCX never forgets a component: its code must stay.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libuct_vmshm.so.0");
    Ok(())
}

/// Binds to what programs call, for the tests.
fn bind_programs(includes: &Path, out: &Path) -> Result<(), String> {
    bindgen::Builder::default()
        .header("src/tests/ucx.h")
        .clang_arg(format!("-I{}", includes.display()))
        .allowlist_function("ucp_.*")
        .allowlist_type("uc[ps]_.*")
        .allowlist_var("UCP_.*")
        .layout_tests(false)
        .generate_comments(false)
        .derive_debug(false)
        .prepend_enum_name(false)
        .generate()
        .map_err(|error| format!("bindgen could not read UCX's headers in {}: {error}", includes.display()))?
        .write_to_file(out.join("programs.rs"))
        .map_err(|error| format!("cannot write the bindings: {error}"))
}

/// Series of the UCX whose headers lie there.
fn version(includes: &Path) -> Result<(u32, u32), String> {
    let header = includes.join(VERSION);
    println!("cargo::rerun-if-changed={}", header.display());
    let missing = |why: &dyn std::fmt::Display| {
        format!(
            "no headers of UCX in {} ({VERSION}: {why}): on Debian and Ubuntu install the package libucx-dev; set UCX_DIR to \
             UCX's prefix if it is in an unusual place",
            includes.display()
        )
    };
    let text = fs::read_to_string(&header).map_err(|error| missing(&error))?;
    let line = text.lines().find_map(|line| line.strip_prefix("#define UCT_VERNO_STRING"));
    let mut numbers = line.unwrap_or("").trim().trim_matches('"').split('.').map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => Err(missing(&"it names no version")),
    }
}
