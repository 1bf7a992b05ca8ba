//! Reads documentation out of this program's own source, so that pages and code can't differ: the comment of
//! a key, of an exit code, of a format stands once, where the code is.

/// A struct or an enum with its documentation.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) name: String,
    pub(super) doc: String,
    /// Fields with their types, or variants.
    pub(super) parts: Vec<Part>,
    pub(super) is_enum: bool,
}

/// A field or a variant.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// The name as it is written in a file: renamed as serde is told to.
    pub(super) name: String,
    /// The type of a field; empty for a variant.
    pub(super) kind: String,
    pub(super) doc: String,
}

/// The documentation at the head of a module (`//!` lines).
pub(super) fn module_doc(text: &str) -> String {
    let lines = text.lines().take_while(|l| l.starts_with("//!"));
    lines.map(|l| comment(l, "//!").to_owned() + "\n").collect()
}

/// What stands behind the slashes.
fn comment<'a>(line: &'a str, slashes: &str) -> &'a str {
    let text = line.trim_start().strip_prefix(slashes).unwrap_or_default();
    text.strip_prefix(' ').unwrap_or(text)
}

/// Every public struct with named fields, and every public enum, of a source file.
pub(super) fn items(text: &str) -> Vec<Item> {
    let mut out = Vec::new();
    let (mut doc, mut attributes) = (String::new(), String::new());
    let mut open: Option<(Item, String)> = None;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let word = line.trim();
        if word.starts_with("///") {
            doc += comment(line, "///");
            doc.push('\n');
        } else if word.starts_with("#[") {
            let mut whole = word.to_owned();
            while whole.matches('[').count() > whole.matches(']').count() {
                let Some(more) = lines.next() else { break };
                whole += more.trim();
            }
            attributes += &whole;
        } else {
            let (said, told) = (std::mem::take(&mut doc), std::mem::take(&mut attributes));
            match &mut open {
                Some((item, style)) if line != "}" => item.parts.extend(part(item, style, word, said, &told)),
                Some(_) => out.extend(open.take().map(|(item, _)| item)),
                None => open = head(line, said).map(|item| (item, value(&told, "rename_all"))),
            }
        }
    }
    out
}

/// The first line of a struct or an enum.
fn head(line: &str, doc: String) -> Option<Item> {
    let is_enum = line.starts_with("pub enum ");
    let rest = line.strip_prefix("pub struct ").or_else(|| line.strip_prefix("pub enum "))?;
    let name = rest.strip_suffix(" {")?;
    let name = name.split('<').next().unwrap_or(name).to_owned();
    Some(Item { name, doc, parts: Vec::new(), is_enum })
}

/// A line within one.
fn part(item: &Item, style: &str, word: &str, doc: String, attributes: &str) -> Option<Part> {
    let renamed = value(attributes, "rename");
    if attributes.contains("serde(skip)") {
        return None;
    }
    let (name, kind) = if item.is_enum {
        let name: String = word.chars().take_while(char::is_ascii_alphanumeric).collect();
        (cased(&name, style), String::new())
    } else {
        let (name, kind) = word.strip_prefix("pub ")?.split_once(": ")?;
        (name.to_owned(), kind.trim_end_matches(',').to_owned())
    };
    if name.is_empty() {
        return None;
    }
    Some(Part { name: if renamed.is_empty() { name } else { renamed }, kind, doc })
}

/// The quoted value of `key = "..."` in attributes; empty if there is none.
fn value(attributes: &str, key: &str) -> String {
    let quoted = attributes.split_once(&format!("{key} = \"")).and_then(|(_, rest)| rest.split_once('"'));
    quoted.map(|(v, _)| v.to_owned()).unwrap_or_default()
}

/// A variant's name as serde writes it.
fn cased(name: &str, style: &str) -> String {
    let parted = |mark: &str| {
        let mut out = String::new();
        for (i, c) in name.chars().enumerate() {
            if c.is_ascii_uppercase() && i > 0 {
                out += mark;
            }
            out.push(c.to_ascii_lowercase());
        }
        out
    };
    match style {
        "lowercase" => parted(""),
        "kebab-case" => parted("-"),
        "snake_case" => parted("_"),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_variants_and_their_comments_are_found() {
        let text = "//! Head\n//!\n//! more\nuse x;\n\n/// Ways.\n#[derive(Debug)]\n#[serde(rename_all = \"kebab-case\")]\npub enum Way {\n    /// One\n    /// two.\n    OneTwo,\n    #[serde(rename = \"x\")]\n    Three(u8),\n}\n\n/// All.\n#[serde(\n    default,\n)]\npub struct All {\n    /// The way.\n    pub way: Option<Way>,\n    #[serde(skip)]\n    pub hidden: u8,\n    private: u8,\n}\npub struct Unit;\n";
        assert_eq!(module_doc(text), "Head\n\nmore\n");
        let found = items(text);
        assert_eq!(found.len(), 2);
        let names = |i: usize| found[i].parts.iter().map(|p| p.name.as_str()).collect::<Vec<_>>();
        assert_eq!((names(0), names(1)), (vec!["one-two", "x"], vec!["way"]));
        assert_eq!(found[0].parts[0].doc, "One\ntwo.\n");
        assert_eq!((found[1].parts[0].kind.as_str(), found[1].doc.as_str()), ("Option<Way>", "All.\n"));
    }
}
