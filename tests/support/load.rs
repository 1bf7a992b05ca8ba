//! A random application: a thread that creates, appends, overwrites, truncates, punches, renames,
//! links, chmods and deletes below one directory, and that must never see an error.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

use fastrand::Rng;

/// Most files and most directories kept at a time.
const FILES: usize = 300;
const DIRS: usize = 40;

/// The running workload.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    ops: Arc<AtomicU64>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Load {
    /// Starts it below `dir`, which is made; about `pace` between operations (zero: as fast as it goes).
    pub(crate) fn start(dir: &Path, seed: u64, pace: Duration) -> Self {
        fs::create_dir_all(dir).expect("mkdir");
        let (stop, ops) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stop2, ops2, dir) = (stop.clone(), ops.clone(), dir.to_owned());
        let thread = std::thread::spawn(move || {
            let mut app = App::new(&dir, seed);
            while !stop2.load(SeqCst) {
                app.step()?;
                ops2.fetch_add(1, SeqCst);
                if !pace.is_zero() {
                    std::thread::sleep(pace.mul_f64(app.rng.f64() * 2.0));
                }
            }
            Ok(())
        });
        Self { stop, ops, thread: Some(thread) }
    }

    /// Operations so far.
    pub(crate) fn ops(&self) -> u64 {
        self.ops.load(SeqCst)
    }

    /// Stops it; asserts that the application met no error and did something.
    pub(crate) fn finish(mut self) -> u64 {
        self.stop.store(true, SeqCst);
        let end = self.thread.take().expect("running").join().expect("workload panicked");
        end.expect("the application met an error");
        assert!(self.ops() > 0, "the workload did nothing");
        self.ops()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Runs `steps` operations and returns.
pub(crate) fn burst(dir: &Path, seed: u64, steps: usize) {
    fs::create_dir_all(dir).expect("mkdir");
    let mut app = App::new(dir, seed);
    for _ in 0..steps {
        app.step().expect("workload");
    }
}

struct App {
    rng: Rng,
    root: PathBuf,
    dirs: Vec<PathBuf>,
    files: Vec<PathBuf>,
    next: u64,
}

impl App {
    fn new(dir: &Path, seed: u64) -> Self {
        // What an earlier run left is taken over.
        let (mut dirs, mut files) = (vec![dir.to_owned()], Vec::new());
        for e in walkdir::WalkDir::new(dir).min_depth(1).sort_by_file_name().into_iter().flatten() {
            if e.file_type().is_dir() {
                dirs.push(e.into_path());
            } else if e.file_type().is_file() && e.path().extension().is_none_or(|x| x != "new") {
                // What was being put in the place of another goes there when that one is replaced again.
                files.push(e.into_path());
            }
        }
        let next = fastrand::u64(1..) << 20;
        Self { rng: Rng::with_seed(seed), root: dir.to_owned(), dirs, files, next }
    }

    fn fresh(&mut self) -> PathBuf {
        self.next += 1;
        let i = self.rng.usize(..self.dirs.len());
        self.dirs[i].join(format!("f{:x}", self.next))
    }

    fn bytes(&mut self, max: usize) -> Vec<u8> {
        let n = self.rng.usize(1..max);
        // Half of it compresses.
        if self.rng.bool() {
            let word = self.rng.u64(..).to_le_bytes();
            word.iter().copied().cycle().take(n).collect()
        } else {
            std::iter::repeat_with(|| self.rng.u8(..)).take(n).collect()
        }
    }

    fn any(&mut self) -> Option<PathBuf> {
        if self.files.is_empty() {
            None
        } else {
            Some(self.files[self.rng.usize(..self.files.len())].clone())
        }
    }

    fn step(&mut self) -> io::Result<()> {
        let choice = if self.files.len() < 5 { 0 } else { self.rng.u32(..100) };
        match choice {
            0..30 => self.create(),
            30..42 => self.append(),
            42..56 => self.overwrite(),
            56..62 => self.resize(),
            62..72 => self.replace(),
            72..80 => self.rename(),
            80..84 => self.rename_dir(),
            84..89 => self.mkdir(),
            89..92 => self.link(),
            92..95 => self.attributes(),
            95..96 => self.remove_dir(),
            _ => self.remove(),
        }
    }

    fn create(&mut self) -> io::Result<()> {
        if self.files.len() >= FILES {
            return self.remove();
        }
        let path = self.fresh();
        let bytes = self.bytes(40_000);
        fs::write(&path, bytes)?;
        self.files.push(path);
        Ok(())
    }

    fn append(&mut self) -> io::Result<()> {
        let Some(path) = self.any() else { return Ok(()) };
        let bytes = self.bytes(5000);
        File::options().append(true).open(path)?.write_all(&bytes)
    }

    fn overwrite(&mut self) -> io::Result<()> {
        let Some(path) = self.any() else { return Ok(()) };
        let file = File::options().write(true).open(path)?;
        let len = file.metadata()?.len();
        for _ in 0..self.rng.u32(1..4) {
            let bytes = self.bytes(9000);
            file.write_all_at(&bytes, self.rng.u64(..=len))?;
        }
        Ok(())
    }

    fn resize(&mut self) -> io::Result<()> {
        let Some(path) = self.any() else { return Ok(()) };
        let file = File::options().write(true).open(path)?;
        let len = file.metadata()?.len();
        if self.rng.bool() {
            return file.set_len(self.rng.u64(..len + 100_000));
        }
        let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        let from = self.rng.u64(..=len);
        Ok(rustix::fs::fallocate(&file, flags, from, self.rng.u64(1..60_000))?)
    }

    fn replace(&mut self) -> io::Result<()> {
        let Some(path) = self.any() else { return Ok(()) };
        let aside = path.with_extension("new");
        let bytes = self.bytes(30_000);
        fs::write(&aside, bytes)?;
        if self.rng.bool() {
            File::open(&aside)?.sync_all()?;
        }
        fs::rename(aside, path)
    }

    fn rename(&mut self) -> io::Result<()> {
        let Some(path) = self.any() else { return Ok(()) };
        // Sometimes over another file.
        let to = if self.rng.u32(..4) == 0 { self.any().unwrap_or_default() } else { self.fresh() };
        fs::rename(&path, &to)?;
        let same = to.symlink_metadata()?.ino() == path.symlink_metadata().map_or(0, |m| m.ino());
        if !same {
            self.files.retain(|f| *f != path);
        }
        if !self.files.contains(&to) {
            self.files.push(to);
        }
        Ok(())
    }

    fn mkdir(&mut self) -> io::Result<()> {
        if self.dirs.len() >= DIRS {
            return Ok(());
        }
        let path = self.fresh().with_extension("d");
        fs::create_dir(&path)?;
        if self.rng.bool() {
            let file = path.join("first");
            fs::write(&file, b"at once")?;
            self.files.push(file);
        }
        self.dirs.push(path);
        Ok(())
    }

    fn pick_dir(&mut self) -> Option<PathBuf> {
        let i = self.rng.usize(..self.dirs.len());
        (i > 0).then(|| self.dirs[i].clone())
    }

    fn rename_dir(&mut self) -> io::Result<()> {
        let Some(from) = self.pick_dir() else { return Ok(()) };
        self.next += 1;
        let i = self.rng.usize(..self.dirs.len());
        if self.dirs[i].starts_with(&from) {
            return Ok(());
        }
        let to = self.dirs[i].join(format!("m{:x}.d", self.next));
        fs::rename(&from, &to)?;
        for path in self.dirs.iter_mut().chain(self.files.iter_mut()) {
            if let Ok(rest) = path.strip_prefix(&from) {
                *path = if rest.as_os_str().is_empty() { to.clone() } else { to.join(rest) };
            }
        }
        Ok(())
    }

    fn remove_dir(&mut self) -> io::Result<()> {
        let Some(dir) = self.pick_dir() else { return Ok(()) };
        fs::remove_dir_all(&dir)?;
        self.dirs.retain(|d| !d.starts_with(&dir));
        self.files.retain(|f| !f.starts_with(&dir));
        Ok(())
    }

    fn link(&mut self) -> io::Result<()> {
        let Some(path) = self.any() else { return Ok(()) };
        let to = self.fresh();
        if self.rng.u32(..3) == 0 {
            symlink(path.file_name().unwrap_or_default(), to.with_extension("s"))?;
        } else {
            fs::hard_link(path, &to)?;
            self.files.push(to);
        }
        Ok(())
    }

    fn attributes(&mut self) -> io::Result<()> {
        let Some(path) = self.any() else { return Ok(()) };
        match self.rng.u32(..3) {
            0 => fs::set_permissions(path, fs::Permissions::from_mode(0o600 | self.rng.u32(..0o100))),
            1 => {
                let value = self.bytes(60);
                Ok(rustix::fs::setxattr(&path, "user.towline", &value, rustix::fs::XattrFlags::empty())?)
            }
            _ => {
                let time = std::time::UNIX_EPOCH + Duration::from_nanos(self.rng.u64(..1 << 60));
                File::options().write(true).open(path)?.set_modified(time)
            }
        }
    }

    fn remove(&mut self) -> io::Result<()> {
        if self.files.is_empty() {
            return Ok(());
        }
        let i = self.rng.usize(..self.files.len());
        let path = self.files.swap_remove(i);
        // Keep the number of symlinks down, too.
        for e in fs::read_dir(&self.root)?
            .flatten()
            .filter(|e| e.path().extension().is_some_and(|x| x == "s"))
            .take(1)
        {
            fs::remove_file(e.path())?;
        }
        fs::remove_file(path)
    }
}

#[test]
fn the_application_changes_much_and_meets_no_error() {
    let dir = tempfile::tempdir_in("/var/tmp").expect("tempdir");
    burst(dir.path(), 1, 3000);
    let count = walkdir::WalkDir::new(dir.path()).into_iter().flatten().count();
    assert!(count > 50, "{count} entries");
    // A second run takes over what the first left.
    let load = Load::start(dir.path(), 2, Duration::ZERO);
    std::thread::sleep(Duration::from_millis(300));
    assert!(load.finish() > 100);
}
