//! Every kind of object, compared by a checker that is not towline's own code.

use std::fs;

use crate::support::bed::{Bed, is_root, py};
use crate::support::{Pair, assert_equal_within, within};

fn make(dir: &std::path::Path) {
    let root = if is_root() { "--root" } else { "--plain" };
    Bed::python("objects.py", &[dir.to_str().expect("path"), root]);
    assert!(std::path::Path::new(&py("objects.py")).exists());
}

#[test]
fn every_kind_of_object_present_before_the_start_is_filled() {
    let bed = Bed::new("objects-fill");
    let spec = bed.leader("leader");
    make(&spec.data);
    let leader = spec.start();
    let follower = bed.follower("follower", leader.spec.listen).start();
    let said = assert_equal_within(within(60), leader.data(), follower.data());
    assert!(said.contains("equal: 1"), "more than a hundred entries: {said}");
    let held = fs::read(follower.data().join("attributes/xattrs")).expect("read");
    assert_eq!(held, b"attributes");
}

#[test]
fn every_kind_of_object_made_live_is_captured() {
    let pair = Pair::start("objects-live");
    make(pair.data());
    pair.equal(30);
    // And every kind goes away again.
    for dir in ["deep", "names", "files", "links", "nodes", "attributes"] {
        fs::rename(pair.data().join(dir), pair.data().join(format!("moved-{dir}"))).expect("rename");
    }
    pair.equal(15);
    for dir in ["deep", "names", "files", "links", "nodes", "attributes"] {
        let gone = std::process::Command::new("rm")
            .arg("-rf")
            .arg(pair.data().join(format!("moved-{dir}")))
            .status();
        assert!(gone.expect("rm").success());
    }
    pair.equal(15);
    pair.finish();
}

#[test]
fn attribute_changes_alone_are_captured() {
    use std::os::unix::fs::PermissionsExt;
    let pair = Pair::start("objects-attributes");
    let file = pair.data().join("f");
    fs::write(&file, "x").expect("write");
    fs::create_dir(pair.data().join("d")).expect("mkdir");
    pair.equal(5);
    let set = |path: &std::path::Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod")
    };
    set(&file, 0o604);
    set(&pair.data().join("d"), 0o1711);
    set(pair.data(), 0o711);
    pair.equal(3);
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(&file, "user.a", b"1", flags).expect("setxattr");
    rustix::fs::setxattr(pair.data(), "user.a", b"root", flags).expect("setxattr");
    pair.equal(3);
    rustix::fs::setxattr(&file, "user.a", b"2", rustix::fs::XattrFlags::REPLACE).expect("setxattr");
    rustix::fs::removexattr(pair.data(), "user.a").expect("removexattr");
    pair.equal(3);
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_nanos(1_234_567_891);
    fs::File::open(&file).expect("open").set_modified(old).expect("utimes");
    fs::File::open(pair.data().join("d")).expect("open").set_modified(old).expect("utimes");
    fs::File::open(pair.data()).expect("open").set_modified(old).expect("utimes");
    pair.equal(3);
    if is_root() {
        std::os::unix::fs::chown(&file, Some(7), Some(8)).expect("chown");
        std::os::unix::fs::chown(pair.data().join("d"), Some(9), None).expect("chown");
        pair.equal(3);
    }
    pair.finish();
}
