//! towline.toml(5): every key with its type, its default, what a reload does with it, and its comment.

use serde_json::Value;

use super::roff::Page;
use super::source::{self, Item, Part};
use crate::config::Config;
use crate::daemon::{self, Reach};
use crate::state::Role;

/// Where types of the configuration are defined.
const SOURCES: &[&str] =
    &[include_str!("../../config/mod.rs"), include_str!("../../tls/mod.rs"), include_str!("../../trust.rs")];

/// Every struct and enum of the configuration.
fn known() -> Vec<Item> {
    SOURCES.iter().flat_map(|s| source::items(s)).collect()
}

/// What a key's type is, seen from the file.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Words(&'static str),
    /// One of the words of this enum.
    Choice(usize),
    Table(usize),
    Tables(usize),
}

/// The page.
pub(super) fn page() -> String {
    let items = known();
    let mut page = Page::new("towline.toml", 5);
    page.section("NAME");
    page.raw("towline.toml \\- configuration of a towline node");
    page.section("DESCRIPTION");
    page.markdown(
        "A node reads one TOML file. Every key has a default but `data` and `state`. A key that towline doesn't know \
         is refused, with its line and the nearest name. `towline config check FILE` checks a file, \
         `towline config show FILE` prints what is in force, defaults included. Many keys are also flags of \
         `towline leader` and `towline follower`, with dashes in place of underscores; a flag wins over the file.\n\n\
         Under systemd the file of instance NAME of `towline@.service` is `/etc/towline/NAME.toml`.\n\n\
         A duration is a string: a whole number with `ms`, `s`, `m` or `h`, like \"30s\". A size is a string: a whole \
         number of bytes, with `k`, `M`, `G` or `T` for powers of 1024, like \"64M\".\n\n\
         `towline reload`, or the signal SIGHUP, makes a node read its file again. What becomes of a key that changed \
         is said below for each: it is in force at once, or only after a restart of the node. A file with a mistake \
         changes nothing.",
    );
    page.section("KEYS");
    let defaults = serde_json::to_value(Config::default()).unwrap_or_default();
    if let Some(config) = items.iter().find(|i| i.name == "Config") {
        keys(&mut page, &items, config, "", &defaults);
    }
    page.section("EXAMPLES");
    page.markdown("A leader:");
    page.example(
        "data = \"/srv/app\"\nstate = \"/var/lib/towline/app\"\nlisten = \"127.0.0.1:7654\"\nname = \"alpha\"\nexclude = [\"cache/*\", \"*.tmp\"]",
    );
    page.markdown("A follower of it:");
    page.example(
        "data = \"/srv/app\"\nstate = \"/var/lib/towline/app\"\nleader = \"127.0.0.1:7654\"\nname = \"beta\"",
    );
    page.section("SEE ALSO");
    page.raw(".BR towline (1),");
    page.raw(".BR towline\\-config (1)");
    page.finish()
}

/// The keys of one table; those of tables within it follow it.
fn keys(page: &mut Page, items: &[Item], table: &Item, prefix: &str, defaults: &Value) {
    let mut inner = Vec::new();
    for part in &table.parts {
        let default = defaults.get(&part.name).unwrap_or(&Value::Null);
        let kind = kind(items, &part.kind, default);
        let name = format!("{prefix}{}", part.name);
        let (what, end) = match &kind {
            Kind::Words(words) => ((*words).to_owned(), None),
            Kind::Choice(i) => (choice(&items[*i]), None),
            Kind::Table(i) => ("table".to_owned(), Some((*i, format!("{name}.")))),
            Kind::Tables(i) => (format!("array of tables, `[[{name}]]`"), Some((*i, format!("{name}[].")))),
        };
        page.term(&format!("`{name}` ({what})"), &text(part, default, prefix));
        if let Kind::Choice(i) = kind {
            for variant in &items[i].parts {
                page.raw(".RS");
                page.term(&format!("`{}`", variant.name), &variant.doc);
                page.raw(".RE");
            }
        }
        inner.extend(end.map(|(i, prefix)| (i, prefix, default.clone())));
    }
    for (i, prefix, default) in inner {
        page.subsection(&format!("Keys of {}", prefix.trim_end_matches('.')));
        page.markdown(&items[i].doc);
        keys(page, items, &items[i], &prefix, &default);
    }
}

/// Comment, default, flag and reload of a key.
fn text(part: &Part, default: &Value, prefix: &str) -> String {
    let mut text = part.doc.trim().to_owned();
    let default = match default {
        Value::Null => String::new(),
        Value::Array(a) if a.is_empty() => " Default: none.".to_owned(),
        Value::String(s) if s.is_empty() => " Default: empty.".to_owned(),
        Value::Object(_) => String::new(),
        value => format!(" Default: `{value}`."),
    };
    text += &default;
    if prefix.is_empty() {
        text += "\n\n";
        text += &reload(&part.name);
    }
    text
}

/// What `towline reload` does with a key.
fn reload(key: &str) -> String {
    let said = |reach: Reach| match reach {
        Reach::Live => "in force at once",
        Reach::Restart => "after a restart",
        Reach::Idle => "no meaning",
    };
    let (leader, follower) = (daemon::reach(key, Role::Leader), daemon::reach(key, Role::Follower));
    if leader == follower {
        return format!("Reload: {}.", said(leader));
    }
    format!("Reload: leader: {}; follower: {}.", said(leader), said(follower))
}

fn choice(item: &Item) -> String {
    let words: Vec<String> = item.parts.iter().map(|p| format!("\"{}\"", p.name)).collect();
    words.join(" or ")
}

/// What a type means in a file; one that is not known here is what its default is.
fn kind(items: &[Item], kind: &str, default: &Value) -> Kind {
    let bare = kind.strip_prefix("Option<").and_then(|k| k.strip_suffix('>')).unwrap_or(kind);
    let find = |name: &str, is_enum: bool| items.iter().position(|i| i.name == name && i.is_enum == is_enum);
    if let Some(list) = bare.strip_prefix("Vec<").and_then(|k| k.strip_suffix('>')) {
        return find(list, false).map_or(Kind::Words("array of strings"), Kind::Tables);
    }
    if let Some(i) = find(bare, false) {
        return Kind::Table(i);
    }
    if let Some(i) = find(bare, true) {
        return Kind::Choice(i);
    }
    Kind::Words(match (bare, default) {
        ("PathBuf", _) => "path",
        ("Span", _) => "duration",
        ("Size", _) => "size",
        ("bool", _) | (_, Value::Bool(_)) => "true or false",
        ("u8" | "u16" | "u32" | "u64" | "usize" | "i32" | "i64", _) | (_, Value::Number(_)) => "number",
        (_, Value::Array(_)) => "array",
        (_, Value::Object(_)) => "table",
        _ => "string",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_documented() {
        let items = known();
        let config = items.iter().find(|i| i.name == "Config").unwrap();
        let all = serde_json::to_value(Config::default()).unwrap();
        let page = page();
        for key in all.as_object().unwrap().keys() {
            let part = config.parts.iter().find(|p| p.name == *key);
            let doc = part.map(|p| p.doc.as_str()).unwrap_or_default();
            assert!(
                !doc.is_empty(),
                "the key '{key}' has no documentation: write a comment (///) above its field in src/config/mod.rs"
            );
            assert!(page.contains(&format!("\\fB{key}\\fR (")), "'{key}' is not in towline.toml(5)");
        }
        for (kind, name) in config.parts.iter().map(|p| (&p.kind, &p.name)) {
            let custom = kind.trim_start_matches("Option<").trim_start_matches("Vec<").trim_end_matches('>');
            let nested =
                all[name].is_object() || all[name].as_array().is_some_and(|a| a.iter().any(Value::is_object));
            assert!(
                !nested || items.iter().any(|i| i.name == custom),
                "the keys within '{name}' are not documented: add the file that defines {custom} to SOURCES here"
            );
        }
    }

    #[test]
    fn types_are_named_as_the_file_shows_them() {
        let items = known();
        let none = Value::Null;
        assert_eq!(kind(&items, "Option<PathBuf>", &none), Kind::Words("path"));
        assert_eq!(kind(&items, "Vec<String>", &none), Kind::Words("array of strings"));
        assert_eq!(kind(&items, "Policy", &Value::String(String::new())), Kind::Words("string"));
        let Kind::Choice(i) = kind(&items, "Cuts", &none) else { panic!() };
        assert_eq!(choice(&items[i]), "\"exact\" or \"file\"");
        assert_eq!(reload("data"), "Reload: after a restart.");
        assert_eq!(reload("exclude"), "Reload: leader: in force at once; follower: no meaning.");
    }
}
