//! `--stop-signal` and `--stop-timeout`: how COMMAND is asked to end.

use chain::link::Stopping;
use chain::{Error, Result};
use nix::libc;
use nix::sys::signal::Signal;
use std::time::Duration;

/// What the two options ask for; `None` if neither was given. Errors: no such signal, no such time.
pub fn parse(signal: Option<&str>, seconds: Option<&str>) -> Result<Option<Stopping>> {
    if signal.is_none() && seconds.is_none() {
        return Ok(None);
    }
    let signal = signal.map_or(Ok(libc::SIGTERM), self::signal)?;
    // As docker run: a negative number of seconds is for ever.
    let timeout = match seconds {
        Some(text) if text.starts_with('-') && text[1..].parse::<u64>().is_ok() => None,
        Some(text) => Some(timeout(text)?),
        None => None,
    };
    Ok(Some(Stopping { signal, timeout }))
}

fn timeout(text: &str) -> Result<Duration> {
    let seconds: Option<f64> = text.parse().ok();
    seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| Error::usage(format_args!("--stop-timeout {text:?}: not a number of seconds")))
}

/// A signal by number, or by name with or without `SIG`: `QUIT`, `SIGRTMIN+3`.
pub fn signal(text: &str) -> Result<i32> {
    let wrong = || Error::usage(format_args!("signal {text:?}: unknown")).hint("names are those of signal(7)");
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |rest: &str, base: i32, sign: i32| -> Option<i32> {
        let offset: i32 = if rest.is_empty() { 0 } else { rest.get(1..)?.parse().ok()? };
        (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&(base + sign * offset)).then_some(base + sign * offset)
    };
    let number = if let Ok(number) = name.parse::<i32>() {
        (1..=libc::SIGRTMAX()).contains(&number).then_some(number)
    } else if let Some(rest) = name.strip_prefix("RTMIN").filter(|rest| rest.is_empty() || rest.starts_with('+')) {
        real_time(rest, libc::SIGRTMIN(), 1)
    } else if let Some(rest) = name.strip_prefix("RTMAX").filter(|rest| rest.is_empty() || rest.starts_with('-')) {
        real_time(rest, libc::SIGRTMAX(), -1)
    } else {
        format!("SIG{name}").parse::<Signal>().ok().map(|signal| signal as i32)
    };
    number.ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [
            ("SIGQUIT", libc::SIGQUIT),
            ("usr1", libc::SIGUSR1),
            ("3", 3),
            ("SIGRTMIN+3", libc::SIGRTMIN() + 3),
            ("RTMAX-1", libc::SIGRTMAX() - 1),
        ] {
            assert_eq!(signal(text).unwrap(), number, "{text}");
        }
        for text in ["", "SIG", "0", "99", "RTMIN+99", "RTMIN3", "NONSENSE"] {
            assert!(signal(text).unwrap_err().to_string().contains("unknown"), "{text}");
        }
    }

    #[test]
    fn times_are_seconds() {
        assert_eq!(parse(None, None).unwrap(), None);
        let stop = Stopping { signal: libc::SIGTERM, timeout: Some(Duration::from_millis(1500)) };
        assert_eq!(parse(None, Some("1.5")).unwrap(), Some(stop));
        assert_eq!(parse(Some("INT"), Some("-1")).unwrap(), Some(Stopping { signal: libc::SIGINT, timeout: None }));
        assert!(parse(None, Some("soon")).is_err() && parse(None, Some("nan")).is_err());
    }
}
