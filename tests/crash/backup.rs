//! A base backup dies at every place of its making: nothing looks finished, nothing stays on the leader, and what is there can
//! be gone on with.

use std::fs;
use std::os::unix::process::ExitStatusExt;

use crate::support::backup::{Backup, WORK, forgotten};
use crate::support::{Bed, assert_equal, load};

/// Where it is killed; of the modules that it works with those places that it passes for certain.
pub(crate) const POINTS: &[&str] =
    &["backup::begun", "backup::copied", "backup::replayed", "backup::summed", "backup::cleared"];

#[test]
fn a_backup_killed_anywhere_leaves_nothing_that_looks_finished() {
    let bed = Bed::new("crash-backup");
    let spec = bed.leader("leader");
    load::burst(&spec.data.join("load"), 9, 300);
    let leader = spec.start();
    let others = ["fill::manifest", "fill::file", "fill::done", "fill::end", "disk::before_rename"];
    for point in POINTS.iter().chain(&others) {
        let out = bed.path(point.replace("::", "-"));
        let killed =
            Backup::new(leader.spec.listen, &out).env("TOWLINE_FAILPOINTS", &format!("{point}=kill")).run();
        assert_eq!(killed.status.signal(), Some(9), "it never came to {point}");
        assert!(!out.join("manifest.json").exists(), "{point}");
        forgotten(&leader);
        if out.join(WORK).join("backup.json").exists() {
            Backup::new(leader.spec.listen, &out).args(["--resume"]).good();
        } else {
            // It had hardly begun, or was all but complete.
            fs::remove_dir_all(&out).expect("rm");
            Backup::new(leader.spec.listen, &out).good();
        }
        assert_equal(leader.data(), &out.join("data"));
    }
    leader.assert_no_panic();
}
