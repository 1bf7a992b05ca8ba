//! Names: everything that can happen to them, and to many at once.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::Duration;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::bed::Bed;

fn exchange(bed: &Bed, a: &str, b: &str) {
    renameat_with(CWD, bed.path(a), CWD, bed.path(b), RenameFlags::EXCHANGE).unwrap();
}

#[test]
fn every_kind_of_thing_and_attribute_is_captured() {
    let mut bed = Bed::new();
    fs::write(bed.path("file"), b"hello").unwrap();
    fs::write(bed.path("empty"), b"").unwrap();
    fs::create_dir(bed.path("dir")).unwrap();
    symlink("nowhere/at/all", bed.path("dir/link")).unwrap();
    rustix::fs::mknodat(
        CWD,
        bed.path("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o640),
        0,
    )
    .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(bed.path("socket")).unwrap();
    let odd =
        bed.path("dir").join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"\xff\n x"));
    fs::write(odd, b"odd").unwrap();
    fs::write(bed.path(&"n".repeat(255)), b"long").unwrap();
    bed.check();
    fs::set_permissions(bed.path("file"), fs::Permissions::from_mode(0o4711)).unwrap();
    rustix::fs::setxattr(bed.path("file"), "user.a", b"1", rustix::fs::XattrFlags::empty()).unwrap();
    rustix::fs::setxattr(bed.path("dir"), "user.b", b"2", rustix::fs::XattrFlags::empty()).unwrap();
    bed.check();
    rustix::fs::setxattr(bed.path("file"), "user.a", b"3", rustix::fs::XattrFlags::empty()).unwrap();
    rustix::fs::removexattr(bed.path("dir"), "user.b").unwrap();
    let old = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    fs::File::open(bed.path("file")).unwrap().set_modified(old).unwrap();
    bed.check();
}

#[test]
fn renames_links_and_exchanges_ship_no_data() {
    let mut bed = Bed::new();
    fs::create_dir_all(bed.path("a/b/c")).unwrap();
    fs::write(bed.path("a/b/c/big"), vec![7; 3 << 20]).unwrap();
    fs::write(bed.path("other"), b"other").unwrap();
    bed.check();
    let before = bed.mirror.bytes;
    fs::rename(bed.path("a/b"), bed.path("moved")).unwrap();
    bed.check();
    fs::rename(bed.path("moved/c/big"), bed.path("big")).unwrap();
    fs::hard_link(bed.path("big"), bed.path("a/hard")).unwrap();
    bed.check();
    exchange(&bed, "other", "big");
    bed.check();
    exchange(&bed, "a", "moved");
    bed.check();
    exchange(&bed, "other", "moved");
    bed.check();
    fs::rename(bed.path("moved"), bed.path("a/into")).unwrap();
    bed.check();
    // An exchange of small files is told by their inodes; at most the small ones are read again, none is shipped.
    assert_eq!(bed.mirror.bytes, before);
}

#[test]
fn names_that_change_what_they_are() {
    let mut bed = Bed::new();
    for round in 0..5 {
        fs::write(bed.path("x"), format!("file {round}")).unwrap();
        if round % 2 == 0 {
            bed.check();
        }
        fs::remove_file(bed.path("x")).unwrap();
        fs::create_dir_all(bed.path("x/y")).unwrap();
        fs::write(bed.path("x/y/z"), format!("below {round}")).unwrap();
        if round % 3 == 0 {
            bed.check();
        }
        fs::remove_dir_all(bed.path("x")).unwrap();
        symlink("/etc", bed.path("x")).unwrap();
        bed.check();
        fs::remove_file(bed.path("x")).unwrap();
    }
    bed.check();
}

#[test]
fn replaced_files_and_moves_in_and_out() {
    let mut bed = Bed::new();
    fs::write(bed.path("conf"), b"0").unwrap();
    for n in 1..50 {
        fs::write(bed.path("conf.tmp"), format!("{n}")).unwrap();
        fs::rename(bed.path("conf.tmp"), bed.path("conf")).unwrap();
    }
    bed.check();
    let outside = bed.dir.path().join("outside");
    fs::create_dir_all(outside.join("p/q")).unwrap();
    fs::write(outside.join("p/q/r"), b"from outside").unwrap();
    fs::rename(outside.join("p"), bed.path("in")).unwrap();
    bed.check();
    fs::write(bed.path("in/q/s"), b"watched").unwrap();
    bed.check();
    fs::rename(bed.path("in"), outside.join("out")).unwrap();
    bed.check();
    fs::write(outside.join("out/q/t"), b"not ours").unwrap();
    bed.check();
    for _ in 0..20 {
        // Nothing is left of this but the mtime of the directory.
        fs::rename(outside.join("out"), bed.path("in")).unwrap();
        fs::rename(bed.path("in"), outside.join("out")).unwrap();
        bed.check();
    }
}

#[test]
fn nothing_made_below_fresh_directories_is_lost() {
    let mut bed = Bed::new();
    for n in 0..3000 {
        let dir = format!("d{n}/a/b");
        fs::create_dir_all(bed.path(&dir)).unwrap();
        fs::write(bed.path(&format!("{dir}/f")), format!("{n}")).unwrap();
    }
    bed.check();
    assert_eq!(bed.capture().stats().found_by_scan, 0);
}

#[test]
fn a_directory_made_again_under_its_name_is_watched() {
    let mut bed = Bed::new();
    for n in 0..200 {
        fs::create_dir_all(bed.path("d/e")).unwrap();
        fs::write(bed.path("d/e/f"), format!("{n}")).unwrap();
        fs::rename(bed.path("d"), bed.path(&format!("old{n}"))).unwrap();
    }
    fs::create_dir_all(bed.path("d/e")).unwrap();
    bed.check();
    for n in 0..200 {
        fs::write(bed.path(&format!("old{n}/e/g")), b"later").unwrap();
    }
    fs::write(bed.path("d/e/late"), b"late").unwrap();
    std::thread::sleep(Duration::from_millis(300));
    bed.check();
    assert_eq!(bed.capture().stats().found_by_scan, 0);
}

#[test]
fn a_file_without_a_name_gets_one_with_its_content() {
    let mut bed = Bed::new();
    let flags = rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::WRONLY;
    let fd = rustix::fs::open(bed.path(""), flags, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    rustix::io::write(&fd, b"all of it").unwrap();
    let proc = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
    rustix::fs::linkat(CWD, proc, CWD, bed.path("named"), rustix::fs::AtFlags::SYMLINK_FOLLOW).unwrap();
    bed.check();
}

/// Who opened a file by a name that it has lost is only heard of under that name.
#[test]
fn a_write_through_a_lost_name_shows_under_the_other() {
    for replaced in [false, true] {
        let mut bed = Bed::new();
        fs::write(bed.path("a"), "before").unwrap();
        fs::hard_link(bed.path("a"), bed.path("b")).unwrap();
        bed.check();
        let file = fs::OpenOptions::new().write(true).open(bed.path("a")).unwrap();
        if replaced {
            fs::write(bed.path("new"), "another").unwrap();
            fs::rename(bed.path("new"), bed.path("a")).unwrap();
        } else {
            fs::remove_file(bed.path("a")).unwrap();
        }
        bed.barrier();
        std::os::unix::fs::FileExt::write_all_at(&file, b"behind", 0).unwrap();
        drop(file);
        bed.check_within(Duration::from_secs(20));
    }
}

/// Random operations of several threads on few names: whatever the order was, the end is equal.
#[test]
fn random_name_traffic_ends_equal() {
    let mut bed = Bed::new();
    for seed in 0..24 {
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let bed = &bed;
                scope.spawn(move || traffic(bed, seed * 10 + thread));
            }
        });
        bed.check();
    }
    bed.stop();
}

fn traffic(bed: &Bed, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let name = |rng: &mut fastrand::Rng| {
        let depth = rng.usize(1..4);
        (0..depth).map(|_| ["a", "b", "c", "d"][rng.usize(0..4)]).collect::<Vec<_>>().join("/")
    };
    for n in 0..400 {
        let (a, b) = (bed.path(&name(&mut rng)), bed.path(&name(&mut rng)));
        // Most of these fail, and that is as it should be.
        match rng.u8(0..10) {
            0 | 1 => drop(fs::write(a, format!("{seed} {n}"))),
            2 => drop(fs::create_dir_all(a)),
            3 => drop(fs::rename(a, b)),
            4 => drop(renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)),
            5 => drop(fs::hard_link(a, b)),
            6 => drop(fs::remove_file(a)),
            7 => drop(fs::remove_dir_all(a)),
            8 => drop(symlink("target", a)),
            _ => drop(fs::metadata(&a).and_then(|m| {
                fs::set_permissions(&a, fs::Permissions::from_mode((m.mode() ^ 0o011) | 0o700))
            })),
        }
    }
}
