//! Names of regions.

use crate::error::Error;

/// A name that a region can have: 1 to 63 bytes, no `/`, no leading `.`, no control characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RegionName(String);

impl RegionName {
    /// Checks a name.
    pub fn new(name: &str) -> Result<Self, Error> {
        let bad = |why: &str| {
            Err(Error::Invalid { what: "the region name", value: name.to_owned(), why: why.to_owned() })
        };
        if name.is_empty() {
            return bad("is empty: give 1 to 63 characters");
        }
        if name.contains('/') {
            return bad(
                "contains '/': give a plain name; the environment variable VMSHM_DIR sets the directory",
            );
        }
        if name.starts_with('.') {
            return bad("begins with '.': give another first character");
        }
        if name.len() >= vmshm_abi::region::NAME_LEN {
            return bad(&format!("has {} bytes: 63 is the most", name.len()));
        }
        if name.chars().any(char::is_control) {
            return bad("contains a control character: use printable ones");
        }
        Ok(Self(name.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as the header holds it.
    pub(crate) fn padded(&self) -> [u8; vmshm_abi::region::NAME_LEN] {
        let mut padded = [0; vmshm_abi::region::NAME_LEN];
        padded[..self.0.len()].copy_from_slice(self.0.as_bytes());
        padded
    }
}

impl std::fmt::Display for RegionName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::RegionName;

    #[test]
    fn names_that_could_lead_elsewhere_or_garble_a_terminal_are_refused() {
        for bad in ["", "a/b", "/", ".", "..", ".x", "a\nb", "a\u{1b}[m", "a\0b", &"x".repeat(64)] {
            let error = RegionName::new(bad).unwrap_err().to_string();
            assert!(error.contains("region name"), "{error}");
        }
        for good in ["a", "job 1", "größe", &"x".repeat(63)] {
            assert_eq!(RegionName::new(good).unwrap().as_str(), good);
        }
    }
}
