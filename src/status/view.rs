//! A status document as it is read: by path, from this program's daemon or from one of another version.

use serde_json::Value;

/// A status document, or a part of it. What is not there reads as nothing.
#[derive(Clone, Copy, Debug)]
pub struct View<'a>(pub &'a Value);

impl<'a> View<'a> {
    /// What is at a path like `/log/end`, unless it is null.
    #[must_use]
    pub fn at(self, path: &str) -> Option<View<'a>> {
        self.0.pointer(path).filter(|v| !v.is_null()).map(View)
    }

    /// Whether something is at a path.
    #[must_use]
    pub fn has(self, path: &str) -> bool {
        self.at(path).is_some()
    }

    /// A text, or "".
    #[must_use]
    pub fn text(self, path: &str) -> &'a str {
        self.0.pointer(path).and_then(Value::as_str).unwrap_or_default()
    }

    /// A number.
    #[must_use]
    pub fn number(self, path: &str) -> Option<f64> {
        self.0.pointer(path).and_then(Value::as_f64)
    }

    /// A whole number, or 0.
    #[must_use]
    pub fn count(self, path: &str) -> u64 {
        self.0.pointer(path).and_then(Value::as_u64).unwrap_or_default()
    }

    /// Nanoseconds since 1970, where there is a time.
    #[must_use]
    pub fn time(self, path: &str) -> Option<i64> {
        self.0.pointer(path).and_then(Value::as_i64).filter(|t| *t != 0)
    }

    /// Whether `true` is there.
    #[must_use]
    pub fn flag(self, path: &str) -> bool {
        self.0.pointer(path) == Some(&Value::Bool(true))
    }

    /// The items of a list.
    pub fn list(self, path: &str) -> impl Iterator<Item = View<'a>> {
        self.0.pointer(path).and_then(Value::as_array).into_iter().flatten().map(View)
    }

    /// The entries of a map whose values are whole numbers.
    pub fn counts(self, path: &str) -> impl Iterator<Item = (&'a str, u64)> {
        let map = self.0.pointer(path).and_then(Value::as_object).into_iter().flatten();
        map.map(|(k, v)| (k.as_str(), v.as_u64().unwrap_or_default()))
    }

    /// A position as a number.
    #[must_use]
    pub fn lsn(self, path: &str) -> Option<u64> {
        self.text(path).parse::<crate::position::Lsn>().ok().map(|l| l.0)
    }
}
