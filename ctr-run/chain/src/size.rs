//! Sizes as people write them.

use crate::error::{Error, Result};

/// Bytes from `64M`, `1.5g`, `512KiB`, `1gb`, `4096`: K, M, G, T and P in either case, with or without `i` and `B`, all to
/// the base of 1024. Errors: no number, an unknown unit, a negative number, more than 2^63-1 bytes.
pub fn parse(text: &str) -> Result<u64> {
    let wrong = |why: &str| Error::usage(format!("size {text:?}: {why}")).hint("write 512K, 64M, 1.5G or plain bytes");
    if text.starts_with('-') {
        return Err(wrong("negative"));
    }
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = unit.to_ascii_lowercase();
    let prefix = unit.strip_suffix('b').unwrap_or(&unit);
    let shift = match prefix.strip_suffix('i').filter(|prefix| !prefix.is_empty()).unwrap_or(prefix) {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return Err(wrong("unknown unit")),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || (number.contains('.') && fraction.is_empty()) || fraction.contains('.') {
        return Err(wrong("not a number"));
    }
    if fraction.len() > 18 {
        return Err(wrong("too many digits"));
    }
    let whole: u128 = whole.parse().map_err(|_| wrong("too large"))?;
    let scale = 10u128.pow(fraction.len() as u32);
    let parts: u128 = if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| wrong("not a number"))? };
    let bytes = whole
        .checked_mul(scale)
        .and_then(|n| n.checked_add(parts))
        .and_then(|n| n.checked_mul(1 << shift))
        .ok_or_else(|| wrong("too large"))?
        / scale;
    u64::try_from(bytes).ok().filter(|&bytes| bytes <= i64::MAX as u64).ok_or_else(|| wrong("too large"))
}

/// As [`parse`], with `max` or `-1` for no limit (`None`).
pub fn parse_limit(text: &str) -> Result<Option<u64>> {
    match text {
        "max" | "-1" => Ok(None),
        _ => parse(text).map(Some),
    }
}

/// Bytes for people, to the base of 1024: `512 B`, `1.5 MiB`.
pub fn display(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_binary_in_every_spelling() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4096b", 4096),
            ("64M", 64 << 20),
            ("64m", 64 << 20),
            ("64MB", 64 << 20),
            ("64MiB", 64 << 20),
            ("100Mi", 100 << 20),
            ("0.5g", 1 << 29),
            ("1.5K", 1536),
            ("1P", 1 << 50),
        ] {
            assert_eq!(parse(text).unwrap(), bytes, "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in
            ["", "M", "64X", "-5", "1.2.3", ".5", "5.", "ib", "64 M", "9e9", "99999999999999999999", "8192P", "max"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(parse_limit("max").unwrap(), None);
        assert_eq!(parse_limit("-1").unwrap(), None);
    }

    #[test]
    fn display_rounds() {
        assert_eq!(display(512), "512 B");
        assert_eq!(display(1536), "1.5 KiB");
        assert_eq!(display(64 << 20), "64.0 MiB");
    }
}
