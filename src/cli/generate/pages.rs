//! towline(1), and one page for each command.

use clap::Command;
use clap_mangen::Man;

use super::Files;
use super::roff::Page;
use super::source;

/// The pages of a command line by file name.
pub(super) fn all(command: &Command) -> Files {
    let mut whole = command.clone().disable_help_subcommand(true);
    whole.build();
    let mut files = Files::new();
    add(&whole, &whole, &mut files);
    files
}

/// A command's name with those above it: `towline-log-dump`.
fn name(command: &Command) -> &str {
    command.get_display_name().unwrap_or_else(|| command.get_name())
}

fn add(command: &Command, whole: &Command, files: &mut Files) {
    files.insert(format!("{}.1", name(command)), page(command, whole));
    for sub in command.get_subcommands().filter(|s| !s.is_hide_set()) {
        add(sub, whole, files);
    }
}

/// A part of a page as the library writes it.
type Render = fn(&Man, &mut dyn std::io::Write) -> std::io::Result<()>;

fn page(command: &Command, whole: &Command) -> String {
    let man = Man::new(command.clone());
    let mut page = Page::new(name(command), 1);
    let top = name(command) == name(whole);
    part(&mut page, &man, Man::render_name_section);
    part(&mut page, &man, Man::render_synopsis_section);
    if top {
        page.section("DESCRIPTION");
        page.markdown(ABOUT);
    } else {
        part(&mut page, &man, Man::render_description_section);
    }
    if command.get_subcommands().any(|s| !s.is_hide_set()) {
        commands(&mut page, command);
    }
    if command.get_arguments().any(|a| !a.is_hide_set()) {
        part(&mut page, &man, Man::render_options_section);
    }
    if name(command) == "towline-status" {
        page.section("JSON");
        page.markdown(&json_of_status());
    }
    if top {
        exit_status(&mut page);
        whole_program(&mut page);
    } else {
        page.section("EXIT STATUS");
        page.markdown("0 when done. Every other code is a class of failure; they are listed in towline(1), but for those that the description above gives a meaning of their own.");
    }
    see_also(&mut page, command, whole);
    page.finish()
}

/// Adds a part without what the library puts before each: the apostrophe is settled in [`Page`].
fn part(page: &mut Page, man: &Man, render: Render) {
    let mut out = Vec::new();
    if render(man, &mut out).is_err() {
        return;
    }
    let mut before = String::new();
    for line in String::from_utf8_lossy(&out).lines() {
        if line.starts_with(".ie \\n(.g .ds Aq") || line.starts_with(".el .ds Aq") {
            continue;
        }
        let line = line.trim_end().replace("\\*(Aq", "\\(aq");
        // The library breaks a line twice before a list of values.
        if line.is_empty() || line == ".br" && before == ".br" {
            continue;
        }
        page.raw(&emphasis(&line));
        before = line;
    }
}

/// What stands between backticks becomes bold.
fn emphasis(line: &str) -> String {
    if line.starts_with('.') || line.matches('`').count() % 2 == 1 {
        return line.to_owned();
    }
    let pieces = line.split('`').enumerate();
    pieces.map(|(i, p)| if i % 2 == 1 { format!("\\fB{p}\\fR") } else { p.to_owned() }).collect()
}

fn commands(page: &mut Page, command: &Command) {
    page.section("COMMANDS");
    for sub in command.get_subcommands().filter(|s| !s.is_hide_set()) {
        let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
        page.term(&format!("`{}`(1)", name(sub)), &about);
    }
}

/// The codes of the classes of errors, from their comments: each ends in "Exit N.".
fn exit_status(page: &mut Page) {
    page.section("EXIT STATUS");
    page.term("0", "Done.");
    page.term("1", "Failed.");
    let items = source::items(include_str!("../../error.rs"));
    for class in items.iter().filter(|i| i.name == "ErrorKind").flat_map(|i| &i.parts) {
        if let Some((text, code)) = class.doc.trim().rsplit_once(" Exit ") {
            page.term(code.trim_end_matches('.'), &format!("{}: {}", class.name, text.replace('\n', " ")));
        }
    }
}

/// The table of the status module.
fn json_of_status() -> String {
    let doc = source::module_doc(include_str!("../../status/mod.rs"));
    doc.split_once("\n\n")
        .map(|(_, table)| format!("Keys are only ever added.\n\n{table}"))
        .unwrap_or_default()
}

const ABOUT: &str = "\
towline is PostgreSQL-style physical log shipping for any data directory. A leader watches a data directory, turns \
its changes into a log of compressed, checksummed segments, and ships them over TCP to followers. They keep the log, \
replay it into directories of their own, and resume from what their disk records. The application needs no change, no \
mount and no privilege.

A node is one process with a data directory, the application's, and a state directory, towline's own. `towline \
leader` and `towline follower` run one from flags, `towline run` from a configuration file. The role that a state \
directory holds wins over the command. The other commands ask a running node over the control socket in its state \
directory, or read files.

Of the log's positions a node shows *sent*, *write* (the follower's operating system has it), *flush* (fsynced in the \
follower's log) and *apply* (visible in its data directory).";

/// What holds for every command.
fn whole_program(page: &mut Page) {
    page.section("SIGNALS");
    page.term("SIGTERM, SIGINT", "Stop after flushing: what is in the directory is committed, and followers get a moment to take it. A second one stops at once; the next start recovers.");
    page.term("SIGHUP", "Read the configuration file again, as `towline reload` does.");
    page.section("ENVIRONMENT");
    page.term(
        "`TOWLINE_LOG`",
        "The level of the log, or a filter like `towline::capture=debug`, where `--log-level` is not given.",
    );
    page.term("`NOTIFY_SOCKET`", "Where the service manager is told that the node is ready, reloads, stops, and how it is. Not passed on to commands that the node starts.");
    page.term(
        "`WATCHDOG_USEC`, `WATCHDOG_PID`",
        "How often the service manager wants a sign of life. It is given only while the engines answer.",
    );
    page.term(
        "`JOURNAL_STREAM`",
        "When standard error is the journal, lines carry their priority and no time of their own.",
    );
    page.section("FILES");
    page.term(
        "`/etc/towline/NAME.toml`",
        "Configuration of the instance NAME of `towline@.service`; see towline.toml(5).",
    );
    page.term(
        "`STATE/control`",
        "What the node is: its system, its role, how far it came. Replaced as a whole.",
    );
    page.term("`STATE/log`", "The log; see towline-log(5).");
    page.term(
        "`STATE/catalog`, `STATE/blocks`",
        "Checkpoints of the tree; hashes of the blocks of its files.",
    );
    page.term(
        "`STATE/control.sock`",
        "The control socket: newline-delimited JSON, for the owner of the state directory only.",
    );
    page.section("LOG LINES");
    page.markdown(
        "A node logs to standard error. The level says who must act: *error*: an operator must, or the node stays as it is; *warn*: somebody should look, the node goes on by itself; *info*: the node changed its state. To the journal lines carry their priority and no time of their own. `--log-json` writes JSON lines with `timestamp`, `level`, `target`, `message`, and what else is known, like `kind`, the class of an error. The key `log_level` sets the level of a running node, by `towline reload`.",
    );
    page.section("EXAMPLES");
    page.markdown("A leader, a follower of it, and how far behind that one is:");
    page.example(
        "towline leader --data /srv/app --state /var/lib/towline/app --listen 127.0.0.1:7654\n\
         towline follower --data /srv/copy --state /var/lib/towline/copy --leader 127.0.0.1:7654 --name copy\n\
         towline status --state /var/lib/towline/copy",
    );
}

fn see_also(page: &mut Page, command: &Command, whole: &Command) {
    page.section("SEE ALSO");
    let mut names = Vec::new();
    if name(command) == name(whole) {
        names.extend(whole.get_subcommands().filter(|s| !s.is_hide_set()).map(|s| (name(s).to_owned(), 1)));
    } else {
        names.push((name(whole).to_owned(), 1));
    }
    if name(command).starts_with("towline-log") {
        names.push(("towline-log".to_owned(), 5));
    } else {
        names.push(("towline.toml".to_owned(), 5));
    }
    if name(command) == name(whole) {
        names.push(("towline-log".to_owned(), 5));
    }
    for (i, (name, section)) in names.iter().enumerate() {
        let comma = if i + 1 < names.len() { "," } else { "" };
        page.raw(&format!(".BR {} ({section}){comma}", name.replace('-', "\\-")));
    }
}

#[cfg(test)]
mod tests {
    use crate::error::ErrorKind;

    #[test]
    fn exit_codes_are_those_of_the_errors() {
        let pages = super::all(&<crate::cli::args::Cli as clap::CommandFactory>::command());
        let text = &pages["towline.1"];
        for kind in ErrorKind::ALL {
            let line = format!(".TP\n{}\n{kind:?}: ", kind.exit_code());
            assert!(text.contains(&line), "{line:?}");
        }
        assert!(text.contains("towline\\-log\\-dump") || pages.contains_key("towline-log-dump.1"));
        assert!(!text.contains("thaw"), "what is hidden stays so");
    }
}
