//! Places where MPI programs run over vmshm as processes of this host: under its Open MPI, or under another one.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::lab::region::Region;
use crate::mpi::host_mpi::{HostMpi, Inside};

/// Enough for every size that the checker sends, on a machine with little memory.
pub const REGION: &str = "1G";
/// Small, so that it is full now and then.
const HEAP_REGION: &str = "256M";
/// Smaller than some of the windows that the checker makes.
const FULL_REGION: &str = "16M";

/// An Open MPI, with the plugin and the MPI programs that are built for it.
#[derive(Debug, Clone)]
pub struct Place {
    /// The installation with the tool and the plugin.
    pub stage: PathBuf,
    /// The directory of the programs.
    pub programs: PathBuf,
    /// The root directory, and the release of the Open MPI there, if it is not this machine's.
    pub other: Option<(Inside, String)>,
}

impl Place {
    /// This machine's Open MPI, and what is installed for it.
    pub fn own(stage: &Path) -> Self {
        Self { stage: stage.to_owned(), programs: stage.join("bin"), other: None }
    }

    /// An MPI program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }
}

/// Processes that may write to a process's memory in a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writers {
    /// Itself alone.
    Owner,
    /// So it is, and no other component makes windows: on Debian as it is, between hosts.
    OwnerAlone,
    /// The region is open.
    All,
    /// All processes are in one section.
    Section,
}

impl Writers {
    /// The end of a step's name.
    pub fn suffix(self) -> &'static str {
        match self {
            Writers::Owner => "",
            Writers::OwnerAlone => "-alone",
            Writers::All => "-open",
            Writers::Section => "-one-section",
        }
    }

    /// Whether the checker, which has printed this, had all windows that there can be.
    pub fn check(self, text: &str) -> Result<()> {
        // Only shared ones are sm's where each process writes its own section only.
        let is_shared = |line: &str| line.contains("/hints") || line.contains("/shared");
        let is_owned = matches!(self, Writers::Owner | Writers::OwnerAlone);
        let is_missing =
            |line: &&str| line.contains("makes no window here") && !(is_owned && is_shared(line));
        if let Some(line) = text.lines().find(is_missing) {
            bail!("{}", line.trim());
        }
        let is_counted = |line: &str| line.contains("windows: ") && line.contains("the section was full");
        if self == Writers::OwnerAlone && !text.lines().any(is_counted) {
            bail!("nobody counted the windows that found the section full");
        }
        Ok(())
    }
}

/// A place for MPI jobs with a region of its own, which goes away with it.
#[derive(Debug)]
pub struct Bench {
    // Before the region: jobs end first.
    /// Runs the jobs.
    pub mpi: HostMpi,
    _region: Region,
}

impl Bench {
    /// With a region of two sections.
    pub fn new(place: &Place) -> Result<Self> {
        Self::over(place, Region::create(&place.stage, REGION, 2, true)?, &[], Vec::new())
    }

    /// With windows of our component.
    pub fn with_windows(place: &Place, writers: Writers) -> Result<Self> {
        let region = match writers {
            Writers::All => Region::create_open(&place.stage, REGION, 2)?,
            Writers::OwnerAlone => Region::create(&place.stage, FULL_REGION, 2, true)?,
            Writers::Owner | Writers::Section => Region::create(&place.stage, REGION, 2, true)?,
        };
        // Where windows cannot be direct, Open MPI by itself takes another component for processes of one host. That with
        // messages went with the series 4.
        let components = match writers {
            Writers::OwnerAlone => "vmshm",
            Writers::Owner if place.other.is_some() => "vmshm",
            Writers::Owner => "vmshm,pt2pt",
            Writers::All | Writers::Section if place.other.is_some() => "vmshm,sm",
            Writers::All | Writers::Section => "vmshm,pt2pt,sm",
        };
        let mut environment = vec![("OMPI_MCA_osc".into(), components.into())];
        if writers == Writers::Section {
            environment.push(("VMSHM_SECTION".into(), "0".into()));
        }
        // The most that pt2pt serves.
        environment.push(("MPI4PY_RC_THREAD_LEVEL".into(), "serialized".into()));
        Self::over(place, region, &[], environment)
    }

    /// With the programs' large allocations in the region.
    pub fn with_heap(place: &Place) -> Result<Self> {
        let region = Region::create(&place.stage, HEAP_REGION, 2, true)?;
        Self::over(place, region, &["--heap"], Vec::new())
    }

    fn over(
        place: &Place,
        region: Region,
        arguments: &[&str],
        environment: Vec<(String, String)>,
    ) -> Result<Self> {
        let release = place.other.as_ref().map(|(_, release)| release.as_str());
        let release: Vec<&str> = release.into_iter().flat_map(|release| ["--mpi", release]).collect();
        let mut settings = region.environment_with(&[arguments, &release].concat())?;
        settings.extend(environment);
        let mpi = HostMpi::new(settings)?;
        let mpi = match &place.other {
            Some((inside, _)) => mpi.inside(inside.clone()),
            None => mpi,
        };
        Ok(Self { mpi, _region: region })
    }
}
