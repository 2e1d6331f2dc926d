//! Sizes on the command line: `8G`, `512M`, `4096`.

use vmshm_host::PageSize;

/// Bytes from a number with an optional unit K, M, G or T (powers of 1024; `KiB` and `KB` mean the same).
pub fn parse(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        _ => return Err("give a whole number and a unit, such as 512M, 8G or 1T".into()),
    };
    if number.is_empty() {
        return Err("give a whole number and a unit, such as 512M, 8G or 1T".into());
    }
    let bytes = number.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift));
    match bytes {
        Some(0) => Err("0 bytes hold nothing: give for example 8G".into()),
        Some(bytes) => Ok(bytes),
        None => Err("more than 64 bits can count: give for example 8G".into()),
    }
}

/// Pages of memory, by their size.
pub fn pages(text: &str) -> Result<PageSize, String> {
    match parse(text)? {
        0x1000 => Ok(PageSize::Base),
        0x20_0000 => Ok(PageSize::Huge2M),
        0x4000_0000 => Ok(PageSize::Huge1G),
        _ => Err("give 4K, 2M or 1G".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn sizes_are_read_and_nonsense_is_not() {
        assert_eq!(parse("4096"), Ok(4096));
        assert_eq!(parse("8G"), Ok(8 << 30));
        assert_eq!(parse("8 gib"), Ok(8 << 30));
        assert_eq!(parse("1T"), Ok(1 << 40));
        for bad in
            ["", "G", "0", "0G", "-1", "1.5G", "8X", "99999999999999999999", "99999999999T", "1G1", "１G"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
