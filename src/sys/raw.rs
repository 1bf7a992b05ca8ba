//! Calls that no safe function makes: the only module with unsafe code.

use std::os::fd::{AsFd, AsRawFd};

/// Gives free memory back to the system. To be called after work that took much of it and comes seldom: it walks the
/// whole heap, about a millisecond for 30 MB. Does nothing where the C library is not glibc.
///
/// glibc keeps what was freed for later, in an arena for each few threads, and gives back only what lies at an end. A
/// first copy or a large batch frees tens of megabytes between what stays, so a node that rests afterwards would hold
/// twice what it needs.
pub fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: malloc_trim(3) takes no pointers, may be called by any thread at any time, and only tells the
        // system of pages that no allocation uses.
        #[allow(unsafe_code, reason = "no safe function does this")]
        unsafe {
            nix::libc::malloc_trim(0);
        }
    }
}

/// Begins to write what is dirty of a file, and waits for none of it: from here on a store through a mapping moves the
/// file's stamps again. An error is none of the caller's: whoever syncs the file hears of it.
pub fn start_writing(file: impl AsFd) {
    // SAFETY: sync_file_range(2) takes no pointers; the descriptor is open as long as it is borrowed.
    #[allow(unsafe_code, reason = "no safe function does this")]
    unsafe {
        let fd = file.as_fd().as_raw_fd();
        nix::libc::sync_file_range(fd, 0, 0, nix::libc::SYNC_FILE_RANGE_WRITE);
    }
}

/// Takes a variable out of the environment, so that no process started from here on inherits it. While other threads
/// run it stays there: to be called at the start of the program.
#[must_use]
pub fn take_variable(name: &str) -> Option<std::ffi::OsString> {
    let value = std::env::var_os(name)?;
    let alone = std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1);
    if alone {
        // SAFETY: only another thread could read the environment meanwhile, and there is none.
        #[allow(unsafe_code, reason = "no safe function does this")]
        unsafe {
            std::env::remove_var(name);
        }
    }
    Some(value)
}

/// Seconds since 1970 of what the clock of this machine shows, by its time zone; `summer` says which of two that it shows twice.
/// `None`: it never shows that, or not in that time of the year.
#[must_use]
pub fn local_seconds(date: (i32, u8, u8), clock: (u8, u8, u8), summer: bool) -> Option<i64> {
    use nix::libc;
    let ((year, month, day), (hour, minute, second)) = (date, clock);
    // SAFETY: all of it may be zero; the pointer is null then, and mktime(3) only writes it.
    #[allow(unsafe_code, reason = "no safe function does this")]
    let mut tm: libc::tm = unsafe { std::mem::zeroed() };
    (tm.tm_year, tm.tm_mon, tm.tm_mday) = (year.checked_sub(1900)?, i32::from(month) - 1, i32::from(day));
    (tm.tm_hour, tm.tm_min, tm.tm_sec) = (i32::from(hour), i32::from(minute), i32::from(second));
    tm.tm_isdst = i32::from(summer);
    let asked = tm;
    // SAFETY: the pointer is to a value of ours. The environment, which it may read, is written to at the start of the
    // program only.
    #[allow(unsafe_code, reason = "no safe function does this")]
    let seconds = unsafe { libc::mktime(&raw mut tm) };
    let fields =
        |t: &libc::tm| ((t.tm_year, t.tm_mon, t.tm_mday), (t.tm_hour, t.tm_min, t.tm_sec), t.tm_isdst > 0);
    // It makes another time of one that there is not.
    (fields(&tm) == fields(&asked)).then_some(seconds)
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    /// Bytes of this process in memory.
    fn resident() -> u64 {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        text.split_ascii_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
    }

    #[test]
    fn memory_freed_between_what_stays_goes_back() {
        // Other tests of this process would be measured too: it runs once more, alone.
        const ALONE: &str = "TOWLINE_TEST_ALONE";
        if std::env::var_os(ALONE).is_none() {
            let name = "sys::raw::tests::memory_freed_between_what_stays_goes_back";
            let mut again = std::process::Command::new(std::env::current_exe().unwrap());
            let out = again.args(["--exact", name]).env(ALONE, "1").output().unwrap();
            let said =
                String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
            assert!(out.status.success() && said.contains("1 passed"), "{said}");
            return;
        }
        // Small pieces, so that the allocator keeps them; every 64th stays and pins the heap's end.
        let mut pieces: Vec<Option<Box<[u8]>>> = (0..64 << 10).map(|_| Some(vec![1; 1024].into())).collect();
        pieces.iter_mut().enumerate().filter(|(i, _)| i % 64 != 63).for_each(|(_, p)| *p = None);
        let before = resident();
        give_back_memory();
        let after = resident();
        assert!(after + (32 << 20) < before, "{before} bytes before, {after} after");
        assert_eq!(pieces.iter().flatten().count(), 1 << 10);
    }
}
