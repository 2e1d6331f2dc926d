//! Finds the installed Open MPI with its devel headers, and binds to them.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

/// The header that tells devel headers from those that a user of MPI needs.
const MARK: &str = "opal/mca/btl/btl.h";

/// The series of Open MPI that have a file in `src/ompi`: `v4_1.rs`, `v4_1.h`.
const SERIES: [(u32, u32); 3] = [(4, 1), (5, 0), (6, 0)];

/// Types that the plugin only passes on by pointer: their insides are none of its business.
const POINTED_TO: [&str; 12] = [
    "opal_proc_t",
    "opal_bitmap_t",
    "mca_rcache_base_registration_t",
    "ompi_communicator_t",
    "ompi_datatype_t",
    "ompi_op_t",
    "ompi_request_t",
    "ompi_info_t",
    "mca_coll_base_comm_t",
    "ompi_win_t",
    "ompi_group_t",
    "opal_info_t",
];

struct OpenMpi {
    /// Where `opal_config.h` and `opal/` are.
    devel: PathBuf,
    /// Include directories that users of MPI get.
    includes: Vec<PathBuf>,
    /// Library directories.
    libraries: Vec<PathBuf>,
}

fn main() {
    for name in ["OMPI_DIR", "MPICC", "PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    for file in [
        "build.rs",
        "src/ompi/room.c",
        "src/ompi/shim.c",
        "src/ompi/shim.h",
        "src/ompi/since_5_0.h",
        "src/ompi/v4_1.h",
        "src/ompi/v5_0.h",
        "src/ompi/v6_0.h",
        "src/ompi/missing",
        "src/coll/coll.c",
        "src/coll/coll.h",
        "src/osc/osc.c",
        "src/osc/osc.h",
    ] {
        println!("cargo::rerun-if-changed={file}");
    }
    if let Err(message) = OpenMpi::find().and_then(|ompi| ompi.bind()) {
        println!("cargo::error={message}");
        exit(1);
    }
}

impl OpenMpi {
    /// Looks where `OMPI_DIR` says, else asks the compiler wrapper, else `ompi_info`, else in the usual places.
    fn find() -> Result<Self, String> {
        if let Some(prefix) = env::var_os("OMPI_DIR").map(PathBuf::from) {
            let found =
                Self::among(vec![prefix.join("include")], vec![prefix.join("lib"), prefix.join("lib64")]);
            return found.ok_or_else(|| missing(&format!("OMPI_DIR={}", prefix.display())));
        }
        let wrapper = env::var("MPICC").unwrap_or_else(|_| "mpicc".into());
        let asked = [
            (lines(&wrapper, &["--showme:incdirs"]), lines(&wrapper, &["--showme:libdirs"])),
            (ompi_info("incdir"), ompi_info("libdir")),
            (usual("include"), usual("lib")),
        ];
        let seen = asked.iter().find(|(includes, _)| includes.iter().any(|dir| dir.join("mpi.h").exists()));
        let seen = seen.map(|(includes, _)| includes[0].display().to_string());
        asked
            .into_iter()
            .find_map(|(includes, libraries)| Self::among(includes, libraries))
            .ok_or_else(|| missing(seen.as_deref().unwrap_or("the PATH and the usual places")))
    }

    fn among(includes: Vec<PathBuf>, libraries: Vec<PathBuf>) -> Option<Self> {
        let devel = includes
            .iter()
            .flat_map(|dir| [dir.clone(), dir.join("openmpi")])
            .find(|dir| dir.join(MARK).exists() && dir.join("opal_config.h").exists())?;
        // Headers of the PMIx that Open MPI 5.0 was built with: its own, or its distribution's.
        let pmix = devel
            .ancestors()
            .flat_map(|dir| [dir.join("include"), dir.join("pmix2/include")])
            .find(|dir| dir.join("pmix.h").exists());
        let includes = includes.into_iter().chain(pmix).collect();
        Some(Self { devel, includes, libraries })
    }

    fn bind(&self) -> Result<(), String> {
        let (major, minor) = self.series()?;
        let known = SERIES.map(|(major, minor)| format!("\"{major}.{minor}\"")).join(", ");
        println!("cargo::rustc-check-cfg=cfg(ompi, values({known}))");
        println!("cargo::rustc-cfg=ompi=\"{major}.{minor}\"");
        let release = format!("\"v{major}_{minor}.h\"");
        let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo gave no OUT_DIR")?);
        let includes: Vec<&Path> =
            [self.devel.as_path()].into_iter().chain(self.includes.iter().map(PathBuf::as_path)).collect();

        let mut bindings = bindgen::Builder::default();
        for name in POINTED_TO {
            bindings = bindings
                .blocklist_type(name)
                .raw_line(format!("#[repr(C)] pub struct {name} {{ _private: [u8; 0] }}"));
        }
        bindings
            .header("src/ompi/shim.h")
            .header("src/coll/coll.h")
            .header("src/osc/osc.h")
            .clang_arg("-Isrc/ompi")
            .clang_arg(format!("-DVMSHM_OMPI_RELEASE={release}"))
            .clang_args(includes.iter().map(|dir| format!("-I{}", dir.display())))
            .clang_arg("-Isrc/ompi/missing")
            // Debian 12's libclang knows no such type on x86; the bindings have none.
            .clang_arg("-D_Float16=short")
            .allowlist_type("mca_btl_base_(component|module|descriptor|segment)_t")
            .allowlist_type("mca_mpool_base_(component|module)_t")
            .allowlist_type("mca_btl_base_(registration_handle|atomic_op)_t")
            .allowlist_type(
                "mca_btl_base_(error_cb_fn|module_error_cb_fn|rdma_completion_fn|completion_fn)_t",
            )
            .allowlist_type("mca_coll_base_component_t|vmshm_coll_.*|ompi_osc_base_(component|module)_t")
            .allowlist_function("vmshm_ompi_.*|vmshm_coll_.*|vmshm_osc_.*|opal_progress")
            .allowlist_var(
                "MPI_ERR_(TRUNCATE|NO_MEM|WIN|BASE|OP|TYPE|RMA_ATTACH)|MPI_WIN_(FLAVOR_.*|UNIFIED)|MPI_MODE_NOCHECK",
            )
            .allowlist_var("MPI_LOCK_(EXCLUSIVE|SHARED)|MPI_PROC_NULL|OMPI_ERR_RMA_(SYNC|RANGE)")
            .allowlist_function("mca_(btl_base_param_register|btl_base_dump)")
            .allowlist_function("mca_base_(component_p?var_register|var_group_component_register)")
            .allowlist_function("opal_(bitmap_set_bit|proc_local_get)")
            .allowlist_var("mca_btl_base_active_message_trigger|VMSHM_OMPI_.*")
            .allowlist_type("opal_convertor_t")
            .allowlist_var("CONVERTOR_HOMOGENEOUS|OPAL_DATATYPE_FLAG_NO_GAPS")
            .allowlist_var(
                "BTL_VERSION|MCA_BTL_.*|MCA_MPOOL_.*|MCA_BASE_(VERSION|P?VAR|METADATA)_.*|OPAL_INFO_LVL_.*",
            )
            .allowlist_var("OPAL_(SUCCESS|ERROR|ERR_[A-Z_]+|(MAJOR|MINOR|RELEASE)_VERSION|IDENT_STRING)")
            .layout_tests(true)
            .generate_comments(false)
            .derive_debug(false)
            .prepend_enum_name(false)
            .parse_callbacks(Box::new(bindgen::CargoCallbacks::new()))
            .generate()
            .map_err(|error| {
                let text = error.to_string();
                let cure = if text.contains("'pmix.h'") {
                    " (of an Open MPI that was built --with-pmix=DIR: set CPATH to DIR/include)"
                } else {
                    ""
                };
                format!("bindgen could not read Open MPI's headers in {}: {text}{cure}", self.devel.display())
            })?
            .write_to_file(out.join("ompi.rs"))
            .map_err(|error| format!("cannot write the bindings: {error}"))?;

        let mut shim = cc::Build::new();
        shim.files(["src/ompi/room.c", "src/ompi/shim.c", "src/coll/coll.c", "src/osc/osc.c"])
            .includes(&includes)
            .include("src/ompi")
            .include("src/ompi/missing")
            .define("VMSHM_OMPI_RELEASE", release.as_str())
            .warnings(true)
            .flag_if_supported("-Wno-unused-parameter");
        shim.compile("vmshm_ompi_shim");

        for dir in self.libraries.iter().filter(|dir| dir.is_dir()) {
            println!("cargo::rustc-link-search=native={}", dir.display());
        }
        // The collective component is part of this file, and the framework it belongs to part of libmpi.
        println!("cargo::rustc-link-lib=dylib=mpi");
        println!("cargo::rustc-link-lib=dylib=open-pal");
        // A BTL that finds no device is closed and unmapped while its own code may still be on some stack (thread
        // exits, handlers); staying mapped costs a few pages.
        println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
        Ok(())
    }

    /// The series of Open MPI whose headers these are.
    fn series(&self) -> Result<(u32, u32), String> {
        let config = self.devel.join("opal_config.h");
        println!("cargo::rerun-if-changed={}", config.display());
        let text =
            std::fs::read_to_string(&config).map_err(|e| format!("cannot read {}: {e}", config.display()))?;
        let number = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("#define {name} ")));
            line.and_then(|value| value.trim().parse::<u32>().ok())
        };
        match (number("OPAL_MAJOR_VERSION"), number("OPAL_MINOR_VERSION")) {
            (Some(major), Some(minor)) if SERIES.contains(&(major, minor)) => Ok((major, minor)),
            (Some(major), Some(minor)) => Err(format!(
                "the Open MPI in {} is version {major}.{minor}; this plugin knows the series {}: set OMPI_DIR to \
                 the prefix of such an Open MPI",
                self.devel.display(),
                SERIES.map(|(major, minor)| format!("{major}.{minor}")).join(", "),
            )),
            _ => Err(format!("{} names no version of Open MPI", config.display())),
        }
    }
}

fn missing(place: &str) -> String {
    format!(
        "no Open MPI with devel headers ({MARK}) found, looked in {place}: on Debian and Ubuntu install the package \
         libopenmpi-dev; an Open MPI built from source needs `configure --with-devel-headers`; set OMPI_DIR to its \
         prefix if it is in an unusual place"
    )
}

fn lines(program: &str, arguments: &[&str]) -> Vec<PathBuf> {
    let Ok(output) = Command::new(program).args(arguments).output() else { return Vec::new() };
    if !output.status.success() {
        return Vec::new();
    }
    String::from_utf8_lossy(&output.stdout).split_whitespace().map(PathBuf::from).collect()
}

/// Asks `ompi_info` for a directory: it prints `path:incdir:/usr/...`.
fn ompi_info(name: &str) -> Vec<PathBuf> {
    let answer = lines("ompi_info", &["--parsable", "--path", name]);
    answer.iter().filter_map(|line| line.to_str()?.rsplit(':').next()).map(PathBuf::from).collect()
}

fn usual(part: &str) -> Vec<PathBuf> {
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    ["/usr/lib", "/usr/lib64", "/opt", "/usr/local"]
        .into_iter()
        .flat_map(|root| [format!("{root}/{arch}-linux-gnu/openmpi"), format!("{root}/openmpi"), root.into()])
        .map(|prefix| Path::new(&prefix).join(part))
        .filter(|dir| dir.is_dir())
        .collect()
}
