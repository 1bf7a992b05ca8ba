//! Manual pages and completions, as other programs read them. That they are fresh is a unit test.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

fn files(dir: &str) -> Vec<PathBuf> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(dir);
    let mut out: Vec<PathBuf> = fs::read_dir(&dir).expect("list").map(|e| e.expect("entry").path()).collect();
    out.sort();
    out
}

#[test]
fn mandoc_finds_nothing_in_the_pages() {
    let pages = files("man");
    assert!(pages.len() > 15, "{pages:?}");
    let out = Command::new("mandoc").args(["-Tlint", "-Wwarning"]).args(&pages).output().expect("mandoc");
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success() && said.is_empty(), "{said}");
    // And as text each names itself.
    for page in pages {
        let out = Command::new("mandoc").args(["-Tascii"]).arg(&page).output().expect("mandoc");
        let name = page.file_stem().expect("a name").to_string_lossy().into_owned();
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(text.contains(&format!("{name} - ")) || text.contains(&name), "{name}: {text}");
    }
}

#[test]
fn shells_read_their_completions() {
    for (shell, file) in [("bash", "towline.bash"), ("zsh", "_towline"), ("fish", "towline.fish")] {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scripts/completions").join(file);
        match Command::new(shell).arg("-n").arg(&path).output() {
            Ok(out) => assert!(out.status.success(), "{shell}: {}", String::from_utf8_lossy(&out.stderr)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && shell != "bash" => {
                eprintln!("{shell} is not installed: {file} is not read");
            }
            Err(e) => panic!("{shell}: {e}"),
        }
    }
    // bash offers the flags of a command.
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scripts/completions/towline.bash");
    let script = format!(
        "set -u; . '{}'; COMP_WORDS=(towline status --js); COMP_CWORD=2; _towline towline --js status; echo \"${{COMPREPLY[@]}}\"",
        file.display()
    );
    let out = Command::new("bash").args(["-c", &script]).output().expect("bash");
    assert_eq!(
        String::from_utf8_lossy(&out.stdout).trim(),
        "--json",
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
}
