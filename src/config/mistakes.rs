//! What is wrong with the text of a file: the line, the key, the rule and the remedy.

use toml::Value;

use super::Config;
use super::rules::nearest;

/// What the library says of types, and the same for people.
const TYPES: [(&str, &str); 10] = [
    ("wanted string or table", "invalid type, expected a string"),
    ("expected u8", "expected a whole number from 0 to 255"),
    ("expected u32", "expected a whole number from 0 to 4294967295"),
    ("expected u64", "expected a whole number from 0 on"),
    ("expected usize", "expected a whole number from 0 on"),
    ("expected i32", "expected a whole number"),
    ("expected path string", "expected a string"),
    ("expected a sequence", "expected a list"),
    ("expected a boolean", "expected true or false"),
    ("map, expected", "table, expected"),
];

/// An error of the library's for `text`, in words.
pub(super) fn explain(text: &str, mut e: toml::de::Error) -> String {
    let span = e.span().unwrap_or_default();
    let line = text.get(..span.start).unwrap_or(text).matches('\n').count() + 1;
    let message = e.message().to_owned();
    // Only without the text it says where in the document it is.
    e.set_input(None);
    let shown = e.to_string();
    let path = shown.trim_end().rsplit_once("\nin `").and_then(|(_, path)| path.strip_suffix('`'));
    let what = match path {
        _ if message.starts_with("unknown field") => {
            let hint = nearest(&message).map(|n| format!("; did you mean '{n}'?")).unwrap_or_default();
            // The keys are many, the values that one of them may have are few.
            let (given, _) = message.split_once(", expected one of").unwrap_or((&message, ""));
            format!("{given}{hint}")
        }
        _ if message == "duplicate key" => {
            let key = text.get(span).unwrap_or_default().trim();
            format!("the key '{}' is given a second time; keep one of the two", key.escape_debug())
        }
        Some(path) => format!("{path}: {}", typed(path, &message)),
        None => message,
    };
    format!("line {line}: {what}")
}

/// A value of the wrong type is answered with one of the right type; others name their rule themselves.
fn typed(path: &str, message: &str) -> String {
    if !["invalid type", "invalid value", TYPES[0].0].iter().any(|m| message.starts_with(m)) {
        return message.to_owned();
    }
    let words = TYPES.iter().fold(message.to_owned(), |text, (theirs, ours)| {
        // Names of types are whole words.
        if text.ends_with(theirs) || !theirs.starts_with("expected") {
            text.replace(theirs, ours)
        } else {
            text
        }
    });
    let key = path.rsplit('.').next().unwrap_or(path);
    let default = toml::Table::try_from(Config::default()).ok().and_then(|t| t.get(path).cloned());
    let example = match default {
        Some(Value::Array(_)) => "[\"...\"]".to_owned(),
        Some(Value::String(text)) if text.is_empty() => "\"...\"".to_owned(),
        Some(value) => value.to_string(),
        None if words.ends_with("a list") => "[\"...\"]".to_owned(),
        None => "\"...\"".to_owned(),
    };
    format!("{words}; write it like {key} = {example}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_there_twice_and_a_value_of_the_wrong_type_are_named_with_the_remedy() {
        for (text, words) in [
            (
                "name = \"a\"\n\npeer_timeout = \"5s\"\n  peer_timeout = \"6s\"",
                "line 4: the key 'peer_timeout' is given a second time; keep one of the two",
            ),
            ("[[peer]]\nname = \"a\"\nname = \"b\"", "line 3: the key 'name' is given a second time"),
            (
                "peer_timeout = 5",
                "line 1: peer_timeout: invalid type: integer `5`, expected a string; write it like peer_timeout = \"10s\"",
            ),
            (
                "max_delete = \"a\"",
                "max_delete: invalid type: string \"a\", expected a whole number from 0 to 255",
            ),
            ("max_delete = 300", "expected a whole number from 0 to 255; write it like max_delete = 50"),
            (
                "max_slot_keep = -1",
                "max_slot_keep: invalid value: integer `-1`, expected a whole number from 0 to",
            ),
            ("adopt = 1", "expected true or false; write it like adopt = false"),
            (
                "exclude = \"a\"",
                "exclude: invalid type: string \"a\", expected a list; write it like exclude = [\"...\"]",
            ),
            ("[data]\nx = 1", "data: invalid type: table, expected a string; write it like data = \"...\""),
            (
                "stop_action = 3",
                "stop_action: invalid type, expected a string; write it like stop_action = \"pause\"",
            ),
            (
                "[[peer]]\nname = 3",
                "line 2: peer.name: invalid type: integer `3`, expected a string; write it like name =",
            ),
            ("tls = \"maybe\"", "tls: unknown variant `maybe`, expected one of"),
            ("peer_timeout = \"5x\"", "peer_timeout: '5x' is not a duration; write"),
            ("leader = 7", "leader: invalid type: integer `7`, expected a string HOST:PORT or a list"),
        ] {
            let e = Config::parse(text).unwrap_err().to_string();
            assert!(e.contains(words), "{words}\n{e}");
        }
    }
}
