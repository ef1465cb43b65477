//! Sizes and counts as users write them, and as they are shown.
//!
//! A size is digits with an optional K, M or G and an optional iB; bare digits
//! are MiB. What is wrong here is wrong usage, before anything is asked of the
//! daemon.

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Largest size there is.
const MOST: u64 = 128 * GIB;
/// Smallest disk.
const LEAST_DISK: u64 = 256 * MIB;
/// Least memory of a VM, MiB.
const LEAST_MEMORY_MIB: i64 = 128;

/// Bytes of a size.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, suffix) = text.split_at(digits);
    let wrong = || format!("{text:?} is not a size like 512M or 8G");
    let unit = match suffix.to_ascii_lowercase().as_str() {
        "" | "m" | "mib" => MIB,
        "k" | "kib" => KIB,
        "g" | "gib" => GIB,
        _ => return Err(wrong()),
    };
    if number.is_empty() {
        return Err(wrong());
    }
    let bytes = number
        .parse::<u64>()
        .ok()
        .and_then(|count| count.checked_mul(unit));
    match bytes {
        Some(0) => Err("a size is more than 0".to_owned()),
        Some(bytes) if bytes <= MOST => Ok(bytes),
        _ => Err(format!("{text} is above {}", exact(MOST))),
    }
}

/// Checks the size of a disk and keeps its spelling for the daemon.
pub(crate) fn parse_disk(text: &str) -> Result<String, String> {
    let bytes = parse(text)?;
    if bytes >= LEAST_DISK {
        return Ok(text.to_owned());
    }
    let mut message = format!("{} is below {}", exact(bytes), exact(LEAST_DISK));
    if text.bytes().all(|byte| byte.is_ascii_digit()) && bytes / MIB <= 128 {
        message.push_str(&format!("\nhint: {text}G (bare digits are MiB)"));
    }
    Err(message)
}

/// Memory in MiB.
pub(crate) fn parse_memory(text: &str) -> Result<i64, String> {
    let bytes = parse(text)?;
    if !bytes.is_multiple_of(MIB) {
        return Err(format!("{text} is not whole MiB"));
    }
    let mib = i64::try_from(bytes / MIB).expect("at most 128 GiB");
    if mib < LEAST_MEMORY_MIB {
        return Err(format!("{} is below {LEAST_MEMORY_MIB}M", exact(bytes)));
    }
    Ok(mib)
}

/// A size somebody chose: the largest unit that is exact.
pub(crate) fn exact(bytes: u64) -> String {
    for (unit, letter) in [(GIB, 'G'), (MIB, 'M'), (KIB, 'K')] {
        if bytes >= unit && bytes.is_multiple_of(unit) {
            return format!("{}{letter}", bytes / unit);
        }
    }
    bytes.to_string()
}

/// A size somebody measured, to one decimal.
pub(crate) fn about(bytes: u64) -> String {
    for (unit, letter) in [(GIB, 'G'), (MIB, 'M'), (KIB, 'K')] {
        if bytes >= unit {
            // Whole numbers up to 2^53 are exact, far above any disk.
            #[allow(clippy::cast_precision_loss)]
            let count = bytes as f64 / unit as f64;
            return format!("{count:.1}{letter}");
        }
    }
    format!("{bytes}B")
}

/// A duration like `90s` or `2h30m`, more than nothing.
pub(crate) fn parse_duration(text: &str) -> Result<std::time::Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration.is_zero() => Err("a duration is more than 0".to_owned()),
        Ok(duration) => Ok(duration),
        Err(_) => Err(format!("{text:?} is not a duration like 90s or 2h30m")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_every_spelling_of_a_unit_and_bare_digits_are_mib() {
        for (text, bytes) in [
            ("1", MIB),
            ("512m", 512 * MIB),
            ("2GiB", 2 * GIB),
            ("8G", 8 * GIB),
            ("1024K", MIB),
            ("1kib", KIB),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "0",
            "G",
            "-1",
            "1T",
            "1.5G",
            " 1G",
            "1 G",
            "129G",
            "99999999999999999999",
            "1Gi",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_disk_of_8_is_8_mib_and_the_hint_says_8g() {
        let message = parse_disk("8").unwrap_err();
        assert_eq!(message, "8M is below 256M\nhint: 8G (bare digits are MiB)");
        assert!(parse_disk("256M").is_ok());
        assert!(!parse_disk("100K").unwrap_err().contains("hint"));
    }

    #[test]
    fn memory_is_whole_mib_and_at_least_128() {
        assert_eq!(parse_memory("2G"), Ok(2048));
        assert_eq!(parse_memory("512"), Ok(512));
        assert!(parse_memory("127").is_err());
        assert!(parse_memory("262145K").is_err());
    }

    #[test]
    fn sizes_are_shown_by_the_largest_exact_unit() {
        for (bytes, text) in [
            (8 * GIB, "8G"),
            (1536 * MIB, "1536M"),
            (3 * KIB, "3K"),
            (1000, "1000"),
        ] {
            assert_eq!(exact(bytes), text);
        }
        assert_eq!(about(1_288_490_188), "1.2G");
        assert_eq!(about(12), "12B");
    }

    #[test]
    fn durations_have_units_and_are_not_nothing() {
        assert_eq!(
            parse_duration("2h30m").map(|duration| duration.as_secs()),
            Ok(9000)
        );
        assert!(parse_duration("0s").is_err());
        assert!(parse_duration("5").is_err());
    }
}
