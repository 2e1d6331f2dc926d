//! The choice that a measurement has left on this machine, and the speed that it found: a small file in a cache directory, written by `vmshm tune --measure`.
//!
//! No process of a job measures: many would at once, on CPUs that the others use.

use std::env;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::Uid;

use super::choice::Choice;
use super::machine::Machine;
use super::speed::Speed;

/// Version of the file, its first line. A file of another one is ignored.
const VERSION: &str = "vmshm-tune 1";

/// Where root keeps it, for all.
const SYSTEM: &str = "/var/cache/vmshm";

/// Longest file that is read, bytes.
const LONGEST: u64 = 4096;

/// The directories that may have it, the user's own first.
fn directories() -> Vec<PathBuf> {
    let set = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let own = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    own.map(|cache| cache.join("vmshm")).into_iter().chain([PathBuf::from(SYSTEM)]).collect()
}

/// The directory that this user writes to: root's is for all.
pub fn directory() -> Option<PathBuf> {
    if Uid::effective().is_root() { Some(SYSTEM.into()) } else { directories().into_iter().next() }
}

/// The name of the file. That of another processor has another one: a home directory may serve many machines.
fn name(machine: &Machine) -> String {
    let kind = machine.kind();
    // Vendor, family, model and stepping.
    let processor: Vec<&str> = kind.split('-').take(4).collect();
    format!("tune-{}", processor.join("-"))
}

/// What was kept for this machine. `Err` says why a file is ignored, in one line.
pub fn read(machine: &Machine) -> Result<Option<(Choice, Option<Speed>, PathBuf)>, String> {
    for path in directories().iter().map(|directory| directory.join(name(machine))) {
        if let Some((choice, speed)) = read_file(&path, machine)? {
            return Ok(Some((choice, speed, path)));
        }
    }
    Ok(None)
}

fn read_file(path: &Path, machine: &Machine) -> Result<Option<(Choice, Option<Speed>)>, String> {
    let ignored = |why: &str| {
        format!("{} is ignored, since {why}: 'vmshm tune --measure' makes a new one.", path.display())
    };
    let mut text = String::new();
    let read = |file: File| {
        let owner = file.metadata()?.uid();
        file.take(LONGEST).read_to_string(&mut text)?;
        io::Result::Ok(owner)
    };
    let owner = match File::open(path).and_then(read) {
        Ok(owner) => owner,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ignored(&format!("it can't be read ({error})"))),
    };
    if owner != 0 && owner != Uid::effective().as_raw() {
        return Err(ignored("it belongs to another user"));
    }
    parse(&text, machine).map(Some).map_err(|why| ignored(&why))
}

/// Keeps a choice and the speed with it, in place of earlier ones.
///
/// # Errors
/// A directory that can't be written.
pub fn write(
    directory: &Path,
    machine: &Machine,
    choice: &Choice,
    speed: Option<Speed>,
) -> io::Result<PathBuf> {
    fs::create_dir_all(directory)?;
    let path = directory.join(name(machine));
    // Renamed, so that nobody reads half of it.
    let new = directory.join(format!(".{}.{}", name(machine), std::process::id()));
    fs::write(&new, text(machine, choice, speed)).and_then(|()| fs::rename(&new, &path)).inspect_err(
        |_| {
            let _ = fs::remove_file(&new);
        },
    )?;
    Ok(path)
}

fn length(len: usize) -> String {
    if len == usize::MAX { "never".into() } else { len.to_string() }
}

fn text(machine: &Machine, choice: &Choice, speed: Option<Speed>) -> String {
    let mut text = format!("{VERSION}\nkind {}\n", machine.kind());
    for (name, value) in [
        ("string_into", length(choice.string_into)),
        ("string_out_of", length(choice.string_out_of)),
        ("four_pages", length(choice.four_pages)),
        ("nontemporal", length(choice.nontemporal)),
        ("owns_ahead", choice.owns_ahead.to_string()),
        ("stores_ahead", choice.stores_ahead.to_string()),
        ("demotes", choice.demotes.to_string()),
        ("chunk_size", length(choice.chunk_size)),
        ("rotation", length(choice.rotation)),
        ("evict_from", length(choice.evict_from)),
    ] {
        let _ = writeln!(text, "{name} {value}");
    }
    if let Some(speed) = speed {
        let _ = writeln!(text, "latency {}\nbandwidth {}", speed.latency, speed.bandwidth);
    }
    text
}

fn parse(text: &str, machine: &Machine) -> Result<(Choice, Option<Speed>), String> {
    let mut lines = text.lines();
    if lines.next() != Some(VERSION) {
        return Err(format!("it does not begin with '{VERSION}'"));
    }
    let fields: Vec<(&str, &str)> = lines.filter_map(|line| line.split_once(' ')).collect();
    let field = |wanted: &str| {
        let found = fields.iter().find(|(name, _)| *name == wanted).map(|(_, value)| *value);
        found.ok_or_else(|| format!("it has no {wanted}"))
    };
    if field("kind")? != machine.kind() {
        return Err(format!("it was measured on {}, and this is {}", field("kind")?, machine.kind()));
    }
    let wrong = |name: &str, value: &str| format!("its {name} is {value:?}");
    let from = |name: &str, least: usize| match field(name)? {
        "never" => Ok(usize::MAX),
        value => value.parse().ok().filter(|len| *len >= least).ok_or_else(|| wrong(name, value)),
    };
    let size = |name: &str, least: usize, most: usize| {
        from(name, least)
            .and_then(|size| if size <= most { Ok(size) } else { Err(wrong(name, &size.to_string())) })
    };
    let flag = |name: &str| {
        let value = field(name)?;
        value.parse::<bool>().map_err(|_| wrong(name, value))
    };
    let number = |name: &str| {
        let value = field(name)?;
        value.parse::<u32>().ok().filter(|number| *number > 0).ok_or_else(|| wrong(name, value))
    };
    // Of an earlier version, a file has none.
    let speed = match field("latency") {
        Ok(_) => Some(Speed { latency: number("latency")?, bandwidth: number("bandwidth")? }),
        Err(_) => None,
    };
    let chunk_size = size("chunk_size", 8 << 10, 1 << 20)?;
    let choice = Choice {
        string_into: from("string_into", 32)?,
        string_out_of: from("string_out_of", 32)?,
        four_pages: from("four_pages", 1)?,
        nontemporal: from("nontemporal", 1)?,
        owns_ahead: flag("owns_ahead")?,
        stores_ahead: flag("stores_ahead")?,
        demotes: flag("demotes")?,
        chunk_size,
        rotation: size("rotation", chunk_size, 16 << 20)?,
        evict_from: from("evict_from", 1)?,
    };
    Ok((choice, speed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_again_and_nothing_else() {
        let machine = Machine::read();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name(&machine));
        assert_eq!(read_file(&path, &machine), Ok(None), "there is none yet");
        let choice =
            Choice { string_into: usize::MAX, rotation: 2 << 20, owns_ahead: false, ..Choice::of(&machine) };
        assert_eq!(
            write(&directory.path().join("new"), &machine, &choice, None)
                .unwrap()
                .parent()
                .unwrap()
                .file_name()
                .unwrap(),
            "new"
        );
        for speed in [None, Some(Speed { latency: 250, bandwidth: 9000 })] {
            assert_eq!(write(directory.path(), &machine, &choice, speed).unwrap(), path);
            assert_eq!(read_file(&path, &machine), Ok(Some((choice, speed))));
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2, "nothing else is left there");

        let good = fs::read_to_string(&path).unwrap();
        let other = Machine { level2: machine.level2 + 1, ..machine };
        for (text, why) in [
            (String::new(), "does not begin"),
            (good.replace("tune 1", "tune 2"), "does not begin"),
            (good.replace("rotation 2097152\n", ""), "no rotation"),
            (good.replace("rotation 2097152", "rotation 1"), "rotation is"),
            (good.replace("rotation 2097152", "rotation never"), "rotation is"),
            (good.replace("owns_ahead false", "owns_ahead 7"), "owns_ahead is \"7\""),
            (good.replace("string_into never", "string_into -1"), "string_into is \"-1\""),
            (good.replace("latency 250", "latency 0"), "latency is \"0\""),
            (good.replace("bandwidth 9000\n", ""), "no bandwidth"),
            (good.replace(&machine.kind(), &other.kind()), "was measured on"),
            (good[..good.len() / 2].to_owned(), "has no"),
        ] {
            fs::write(&path, text).unwrap();
            let ignored = read_file(&path, &machine).unwrap_err();
            assert!(ignored.contains(why) && ignored.contains("vmshm tune --measure"), "{why}: {ignored}");
            assert_eq!(ignored.lines().count(), 1, "{ignored}");
        }
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(read_file(&path, &machine).unwrap_err().contains("can't be read"));
    }
}
