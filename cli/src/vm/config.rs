//! `vmshm vm run` with a file: its keys are the options without dashes in front, its values what follows them.
//!
//! The file becomes a part of the command line, so that what an option takes is written down once.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, FromArgMatches, value_parser};
use toml::Value;

use super::run::Args;

const FILE: &str = "file";

/// Options from the command line, and those that are not there from a file.
#[derive(Debug)]
pub struct Run(pub Args);

impl clap::Args for Run {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new(FILE).value_name("FILE.toml").value_parser(value_parser!(PathBuf));
        let help =
            "A TOML file with options: `memory = \"16G\"`, `region = [\"job:0\"]`. Those given here win";
        let elsewhere = |option: Arg| match option.is_required_set() {
            true => option.required(false).required_unless_present(FILE),
            false => option,
        };
        Args::augment_args(command).mut_args(elsewhere).arg(file.help(help))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Run {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let Some(path) = matches.get_one::<PathBuf>(FILE) else {
            return Args::from_arg_matches(matches).map(Self);
        };
        let mut command =
            <Self as clap::Args>::augment_args(Command::new("vmshm vm run")).no_binary_name(true);
        let mut usage = command.clone();
        // The word that is wrong may stand in the file, so it is named; how to use the command is told once.
        let mut wrong = |why: &str| {
            let why = why.trim_start_matches("error: ").split("\n\n").next().unwrap_or_default();
            usage.error(ErrorKind::InvalidValue, format!("{}: {why}", path.display()))
        };
        let words =
            read(path).and_then(|table| words(&command, matches, &table)).map_err(|why| wrong(&why))?;
        let matches = command.try_get_matches_from_mut(words).map_err(|error| wrong(&error.to_string()))?;
        Args::from_arg_matches(&matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn read(path: &Path) -> Result<toml::Table, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("cannot be read: {error}"))?;
    text.parse().map_err(|error: toml::de::Error| error.to_string())
}

/// The command line that says what both the given one and the file say.
fn words(command: &Command, given: &ArgMatches, table: &toml::Table) -> Result<Vec<OsString>, String> {
    let options = || command.get_arguments().filter(|option| option.get_long().is_some());
    if let Some(key) = table.keys().find(|key| !options().any(|option| option.get_long() == Some(key))) {
        let known: Vec<_> = options().filter_map(Arg::get_long).collect();
        return Err(format!("{key:?} is no option; there are: {}", known.join(", ")));
    }
    let mut words = Vec::new();
    for option in options() {
        let Some(name) = option.get_long() else { continue };
        let id = option.get_id().as_str();
        let mut put = |value: Option<OsString>| {
            let mut word = OsString::from(format!("--{name}"));
            if let Some(value) = value {
                word.push("=");
                word.push(value);
            }
            words.push(word);
        };
        let takes_value = option.get_action().takes_values();
        if given.value_source(id) == Some(ValueSource::CommandLine) {
            match given.get_raw(id).filter(|_| takes_value) {
                Some(values) => values.for_each(|value| put(Some(value.to_owned()))),
                None => put(None),
            }
            continue;
        }
        match table.get(name) {
            None => {}
            Some(Value::Boolean(on)) if !takes_value => (0..u8::from(*on)).for_each(|_| put(None)),
            Some(_) if !takes_value => return Err(format!("{name:?} is true or false")),
            Some(Value::Array(values)) => {
                for value in values {
                    put(Some(text(name, value)?));
                }
            }
            Some(value) => put(Some(text(name, value)?)),
        }
    }
    Ok(words)
}

fn text(name: &str, value: &Value) -> Result<OsString, String> {
    match value {
        Value::String(text) => Ok(text.into()),
        Value::Integer(number) => Ok(number.to_string().into()),
        other => {
            Err(format!("{name:?} is a {}: give a string, a number, or a list of these", other.type_str()))
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    #[command(no_binary_name = true)]
    struct Line {
        #[command(flatten)]
        run: Run,
    }

    /// Options from a file and words behind it.
    fn parse(file: &str, words: &[&str]) -> Result<Args, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("job.toml");
        fs::write(&path, file).unwrap();
        let line = [path.to_str().unwrap()].into_iter().chain(words.iter().copied());
        Line::try_parse_from(line).map(|line| line.run.0).map_err(|error| error.to_string())
    }

    fn shown(file: &str, words: &[&str]) -> String {
        format!("{:?}", parse(file, words).unwrap())
    }

    const JOB: &str = "\
kernel = \"/boot/vmlinuz\"\nappend = \"quiet -- --x\"\ncpus = 8\nmemory = \"16G\"\nnuma-node = \"auto\"\n\
region = [\"job:0\", \"other:1\"]\nnet = \"tap:t\"\ndoorbell = true\ndry-run = false\n";

    #[test]
    fn a_file_says_what_options_say() {
        let line = [
            "--kernel",
            "/boot/vmlinuz",
            "--append",
            "quiet -- --x",
            "--cpus",
            "8",
            "--memory",
            "16G",
            "--numa-node",
            "auto",
            "--region",
            "job:0",
            "--region",
            "other:1",
            "--net",
            "tap:t",
            "--doorbell",
        ];
        let by_line = Line::try_parse_from(line).unwrap().run.0;
        assert_eq!(shown(JOB, &[]), format!("{by_line:?}"));
    }

    #[test]
    fn options_of_the_command_line_win() {
        let words = ["--cpus", "2", "--region", "third:3", "--append=", "--dry-run"];
        let file = JOB.replace("cpus = 8", "cpus = 2").replace("dry-run = false", "dry-run = true");
        let file = file.replace("[\"job:0\", \"other:1\"]", "\"third:3\"").replace("quiet -- --x", "");
        assert_eq!(shown(JOB, &words), shown(&file, &[]));
    }

    #[test]
    fn what_is_wrong_in_a_file_is_named() {
        for (file, wanted) in [
            ("kernel = \"k\"\ncpu = 3\n", &["\"cpu\" is no option", "cpus", "job.toml"][..]),
            ("file = \"other.toml\"\n", &["\"file\" is no option"]),
            ("[vm]\nkernel = \"k\"\n", &["\"vm\" is no option"]),
            ("cpus = 3\n", &["--kernel", "job.toml"]),
            ("kernel = \"k\"\ncpus = \"many\"\n", &["--cpus", "many", "job.toml"]),
            ("kernel = \"k\"\ncpus = [1, 2]\n", &["--cpus", "multiple"]),
            ("kernel = \"k\"\ncpus = 1.5\n", &["\"cpus\" is a float"]),
            ("kernel = \"k\"\ndoorbell = 1\n", &["\"doorbell\" is true or false"]),
            ("kernel = \"k\"\nkernel = \"l\"\n", &["job.toml", "line 2", "duplicate"]),
        ] {
            let text = parse(file, &[]).unwrap_err();
            wanted.iter().for_each(|word| assert!(text.contains(word), "{file}: {text}"));
        }
        let text = Line::try_parse_from(["/none.toml"]).unwrap_err().to_string();
        assert!(text.contains("/none.toml") && text.contains("cannot be read"), "{text}");
    }
}
