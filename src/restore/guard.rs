//! What a directory that is made must not be: something that is read for it, a store of towline's, the directory of a node
//! that runs. Every path is taken as it is once its symlinks are followed.
//!
//! Whether a node runs on a directory is asked of `/proc`: a process named `towline` that holds it open, or a directory in it.
//! One that this user must not look into, or that runs under another kernel or in another PID namespace, is not seen.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::archive::{Address, Archive, names};
use crate::disk::settled;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest;
use crate::set;
use crate::state::StateDir;

/// What a process of towline is called.
const PROCESS: &str = "towline";

fn refused(text: String) -> Error {
    Error::new(ErrorKind::Refused, text)
}

/// Refuses an `out` that is, contains, or lies in one of the places that are read; each with what it was given as.
///
/// # Errors
/// `Refused`.
pub fn apart(out: &Path, read: &[(String, PathBuf)]) -> Result<()> {
    let real = settled(out);
    for (given, place) in read {
        let place = settled(place);
        let how = match () {
            () if real == place => "is",
            () if place.starts_with(&real) => "contains",
            () if real.starts_with(&place) => "lies in",
            () => continue,
        };
        return Err(refused(format!(
            "'{}' {how} '{}', which {given} reads from: name a directory outside of it",
            out.display(),
            place.display()
        )));
    }
    Ok(())
}

/// Refuses an `out` that is, or lies in, a state directory, an archive, or a backup.
///
/// # Errors
/// `Refused`.
pub fn no_store(out: &Path) -> Result<()> {
    let real = settled(out);
    for dir in real.ancestors() {
        let Some(what) = store(dir) else { continue };
        let how = if dir == real { "is" } else { "lies in" };
        let named = if dir == real { String::new() } else { format!(" '{}'", dir.display()) };
        return Err(refused(format!(
            "'{}' {how} {what}{named}, which is never written over: name a directory outside of it",
            out.display()
        )));
    }
    Ok(())
}

/// What of towline's own is in `dir`. Files that only have the same names do not count.
fn store(dir: &Path) -> Option<&'static str> {
    if StateDir::is_set_up(dir) && is_control(dir) {
        return Some("the state directory of a node");
    }
    if dir.join(names::IDENTITY).is_file() && Archive::open(&Address::Dir(dir.to_owned())).is_ok() {
        return Some("an archive");
    }
    if dir.join(manifest::NAME).is_file() {
        // A damaged one may be mended yet.
        let whole = set::Set::open_plain(&set::Source::Dir(dir.to_owned())).is_ok();
        return (whole || dir.join(manifest::CATALOG).is_file()).then_some("a backup");
    }
    None
}

/// A control file of the application is none of a node.
fn is_control(dir: &Path) -> bool {
    match StateDir::peek(dir) {
        Ok(found) => found.is_some(),
        // Ours, but damaged, or not to be read by this user.
        Err(_) => dir.join("log").is_dir() && dir.join(crate::disk::LOCK).exists(),
    }
}

/// Refuses an `out` that is there and that a running node of towline has open.
///
/// # Errors
/// `Refused`, with the process.
pub fn unused(out: &Path) -> Result<()> {
    let real = settled(out);
    let Ok(meta) = fs::metadata(&real) else { return Ok(()) };
    if let Some(pid) = holder(&real, (meta.dev(), meta.ino()), Path::new("/proc")) {
        return Err(refused(format!(
            "'{}' is in use by process {pid}, a towline that runs: stop it first, or name another directory",
            out.display()
        )));
    }
    Ok(())
}

fn holder(real: &Path, identity: (u64, u64), proc: &Path) -> Option<u32> {
    let own = std::process::id();
    let pids = fs::read_dir(proc).ok()?.flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    let mut hidden = 0_u32;
    for pid in pids.filter(|pid| *pid != own) {
        let dir = proc.join(pid.to_string());
        let mut name = String::new();
        let read = fs::File::open(dir.join("comm")).and_then(|f| f.take(64).read_to_string(&mut name));
        if read.is_err() || name.trim_end() != PROCESS {
            continue;
        }
        let Ok(open) = fs::read_dir(dir.join("fd")) else {
            hidden += u32::from(dir.exists());
            continue;
        };
        for entry in open.flatten() {
            let Ok(meta) = fs::metadata(entry.path()).map(|m| (m.is_dir(), m.dev(), m.ino())) else {
                continue;
            };
            let within = || fs::read_link(entry.path()).is_ok_and(|at| at.starts_with(real));
            if meta.0 && ((meta.1, meta.2) == identity || within()) {
                return Some(pid);
            }
        }
    }
    if hidden > 0 {
        tracing::warn!(
            "{hidden} processes of towline belong to another user, and may use '{}': make sure that they do not",
            real.display()
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn said(result: Result<()>) -> String {
        result.map_or_else(|e| e.to_string(), |()| String::new())
    }

    #[test]
    fn what_is_read_is_never_written_to_whatever_it_is_called() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        let archive = top.join("nas/arch");
        fs::create_dir_all(archive.join("log")).unwrap();
        symlink(&archive, top.join("link")).unwrap();
        let read = [("--from".to_owned(), archive.clone())];
        for (out, how) in [
            ("nas", "contains"),
            ("nas/arch", "is"),
            ("nas/arch/log", "lies in"),
            ("nas/arch/new/x", "lies in"),
            ("link", "is"),
            ("link/x", "lies in"),
            ("nas/other/../arch", "is"),
        ] {
            let e = said(apart(&top.join(out), &read));
            let archive = archive.display();
            assert!(e.contains(&format!("{out}' {how} '{archive}', which --from reads")), "{out}: {e}");
        }
        for out in ["nas/arch2", "nas/arch.restored", "other"] {
            assert_eq!(said(apart(&top.join(out), &read)), "", "{out}");
        }
        let read = [("--log".to_owned(), top.join("link"))];
        assert!(said(apart(&top.join("nas"), &read)).contains("which --log reads"));
    }

    #[test]
    fn a_store_is_known_by_what_is_in_it_and_not_by_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path();
        let at = |name: &str| {
            let dir = top.join(name);
            fs::create_dir_all(dir.join("log")).unwrap();
            dir
        };
        let archive = at("arch");
        Archive::open_or_create(&Address::Dir(archive.clone()), crate::position::SystemId(7)).unwrap();
        let (e, within) = (said(no_store(&archive)), said(no_store(&archive.join("log"))));
        assert!(e.contains("is an archive, which"), "{e}");
        assert!(within.contains("lies in an archive '"), "{within}");
        let state = at("state");
        let held = StateDir::open_or_create(&state).unwrap();
        let data = top.join("data");
        let role = crate::state::Role::Follower;
        held.persist(crate::state::Control::new(crate::position::SystemId::NONE, role, "n", &data)).unwrap();
        drop(held);
        assert!(said(no_store(&state)).contains("is the state directory"));
        // It is damaged, and still one.
        fs::write(state.join("control"), "x").unwrap();
        assert!(said(no_store(&state.join("catalog"))).contains("lies in the state directory"));
        let set = at("set");
        fs::write(set.join("manifest.json"), "{}").unwrap();
        fs::write(set.join("catalog"), "x").unwrap();
        assert!(said(no_store(&set.join("data"))).contains("lies in a backup"));
        // An application may call its files as it likes.
        let app = at("app");
        for name in ["manifest.json", "system.json", "control"] {
            fs::write(app.join(name), "{}").unwrap();
        }
        assert_eq!(said(no_store(&app)), "");
    }

    #[test]
    fn a_process_that_has_the_directory_open_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (real, proc) = (dir.path().join("data"), dir.path().join("proc"));
        fs::create_dir_all(real.join("deep")).unwrap();
        let process = |pid: u32, name: &str, open: &Path| {
            let fds = proc.join(pid.to_string()).join("fd");
            fs::create_dir_all(&fds).unwrap();
            fs::write(fds.with_file_name("comm"), format!("{name}\n")).unwrap();
            let _ = fs::remove_file(fds.join("3"));
            symlink(open, fds.join("3")).unwrap();
        };
        let meta = fs::metadata(&real).unwrap();
        let held = || holder(&real, (meta.dev(), meta.ino()), &proc);
        process(4_000_001, "sh", &real);
        process(4_000_002, PROCESS, dir.path());
        process(std::process::id(), PROCESS, &real);
        assert_eq!(held(), None);
        for open in [&real, &real.join("deep")] {
            process(4_000_002, PROCESS, open);
            assert_eq!(held(), Some(4_000_002), "{}", open.display());
        }
    }
}
