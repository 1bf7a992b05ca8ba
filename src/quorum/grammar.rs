//! The grammar of `synchronous_followers`, which is that of PostgreSQL's `synchronous_standby_names`:
//!
//! ```text
//! policy  = [ list | number "(" list ")" | "FIRST" number "(" list ")" | "ANY" number "(" list ")" ]
//! list    = name { "," name }
//! name    = word | '"' { any character, '"' doubled } '"' | "*"
//! word    = letters, digits, '_', '.', '-', '$'
//! ```
//!
//! Keywords and names are compared without regard to case. A plain list is `FIRST 1`. Words may hold `.` and `-` and
//! begin with a digit, as names of nodes do; PostgreSQL wants those quoted.

use super::{Method, Policy};

/// Most bytes of a policy.
const TEXT_MAX: usize = 8192;
/// Most names in one.
const NAMES_MAX: usize = 256;
/// What a right one looks like.
const REMEDY: &str = "write it like 'ANY 1 (a, b)', 'FIRST 2 (a, b, c)', 'a, b', '*', or leave it empty";

/// Why a text is no policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{}' is no list of synchronous followers: character {}: {rule}; {REMEDY}", text.escape_debug(), at + 1)]
pub struct PolicyError {
    text: String,
    /// Characters before the place.
    at: usize,
    rule: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Quoted(String),
    Open,
    Close,
    Comma,
    End,
}

impl Token {
    /// As it is named in errors.
    fn shown(&self) -> String {
        match self {
            Self::Word(w) | Self::Quoted(w) => format!("'{}'", w.escape_debug()),
            Self::Open => "'('".to_owned(),
            Self::Close => "')'".to_owned(),
            Self::Comma => "','".to_owned(),
            Self::End => "the end".to_owned(),
        }
    }
}

struct Parser {
    text: String,
    tokens: Vec<(usize, Token)>,
    next: usize,
}

/// Reads a policy.
pub(super) fn parse(text: &str) -> Result<Policy, PolicyError> {
    let shown: String = text.chars().take(200).collect();
    let mut parser = Parser { text: shown, tokens: Vec::new(), next: 0 };
    if text.len() > TEXT_MAX {
        return Err(parser.error(TEXT_MAX, format!("it is longer than {TEXT_MAX} bytes")));
    }
    parser.scan(text)?;
    if parser.peek(0) == &Token::End {
        return Ok(Policy::default());
    }
    parser.policy()
}

impl Parser {
    fn error(&self, at: usize, rule: impl Into<String>) -> PolicyError {
        PolicyError { text: self.text.clone(), at, rule: rule.into() }
    }

    fn scan(&mut self, text: &str) -> Result<(), PolicyError> {
        let chars: Vec<char> = text.chars().collect();
        let mut at = 0;
        while let Some(&c) = chars.get(at) {
            let begin = at;
            at += 1;
            let token = match c {
                c if c.is_whitespace() => continue,
                '(' => Token::Open,
                ')' => Token::Close,
                ',' => Token::Comma,
                '*' => Token::Word("*".to_owned()),
                '"' => {
                    let mut name = String::new();
                    loop {
                        match (chars.get(at), chars.get(at + 1)) {
                            (None, _) => return Err(self.error(begin, "the quoted name is not closed")),
                            (Some('"'), Some('"')) => {
                                name.push('"');
                                at += 2;
                            }
                            (Some('"'), _) => break,
                            (Some(&c), _) => {
                                name.push(c);
                                at += 1;
                            }
                        }
                    }
                    at += 1;
                    if name.is_empty() {
                        return Err(self.error(begin, "a name may not be empty"));
                    }
                    Token::Quoted(name)
                }
                c if word(c) => {
                    while chars.get(at).copied().is_some_and(word) {
                        at += 1;
                    }
                    Token::Word(chars[begin..at].iter().collect())
                }
                c => return Err(self.error(begin, format!("'{}' is not allowed here", c.escape_debug()))),
            };
            self.tokens.push((begin, token));
        }
        self.tokens.push((chars.len(), Token::End));
        Ok(())
    }

    fn peek(&self, ahead: usize) -> &Token {
        self.tokens.get(self.next + ahead).map_or(&Token::End, |(_, t)| t)
    }

    fn at(&self) -> usize {
        self.tokens.get(self.next).or(self.tokens.last()).map_or(0, |(at, _)| *at)
    }

    fn unexpected(&self, wanted: &str) -> PolicyError {
        self.error(self.at(), format!("{wanted} is expected, not {}", self.peek(0).shown()))
    }

    fn expect(&mut self, token: &Token, wanted: &str) -> Result<(), PolicyError> {
        if self.peek(0) != token {
            return Err(self.unexpected(wanted));
        }
        self.next += 1;
        Ok(())
    }

    fn policy(&mut self) -> Result<Policy, PolicyError> {
        let method = match self.peek(0) {
            Token::Word(w) if w.eq_ignore_ascii_case("any") => Some(Method::Any),
            Token::Word(w) if w.eq_ignore_ascii_case("first") => Some(Method::First),
            _ => None,
        };
        let numbered = matches!(self.peek(0), Token::Word(w) if number(w)) && self.peek(1) == &Token::Open;
        if method.is_none() && !numbered {
            let names = self.list()?;
            self.expect(&Token::End, "',' or the end")?;
            return Ok(Policy { method: Method::First, count: 1, names });
        }
        if method.is_some() {
            self.next += 1;
        }
        let count = self.count()?;
        self.expect(&Token::Open, "'('")?;
        let names = self.list()?;
        self.expect(&Token::Close, "',' or ')'")?;
        self.expect(&Token::End, "nothing more")?;
        Ok(Policy { method: method.unwrap_or(Method::First), count, names })
    }

    /// How many followers have to confirm.
    fn count(&mut self) -> Result<usize, PolicyError> {
        let Token::Word(word) = self.peek(0) else {
            return Err(self.unexpected("a number (quote a name that is a keyword, like '\"any\"')"));
        };
        if !number(word) {
            return Err(self.unexpected("a number (quote a name that is a keyword, like '\"any\"')"));
        }
        let count = word.parse().ok().filter(|n| (1..=NAMES_MAX).contains(n));
        let Some(count) = count else {
            let rule = format!("the number of followers is '{word}'; it goes from 1 to {NAMES_MAX}");
            return Err(self.error(self.at(), rule));
        };
        self.next += 1;
        Ok(count)
    }

    fn list(&mut self) -> Result<Vec<String>, PolicyError> {
        let mut names = Vec::new();
        loop {
            let name = match self.peek(0) {
                Token::Quoted(name) => name.clone(),
                Token::Word(w) if w.eq_ignore_ascii_case("any") || w.eq_ignore_ascii_case("first") => {
                    let rule = format!("'{w}' is a keyword; write \"{w}\" for a follower of that name");
                    return Err(self.error(self.at(), rule));
                }
                Token::Word(name) => name.clone(),
                _ => return Err(self.unexpected("a follower's name")),
            };
            if names.len() >= NAMES_MAX {
                return Err(self.error(self.at(), format!("there are more than {NAMES_MAX} names")));
            }
            names.push(name);
            self.next += 1;
            if self.peek(0) != &Token::Comma {
                return Ok(names);
            }
            self.next += 1;
        }
    }
}

fn word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '.' | '-' | '$')
}

fn number(word: &str) -> bool {
    word.bytes().all(|b| b.is_ascii_digit())
}

/// A name as the grammar reads it back.
pub(super) fn quoted(name: &str) -> String {
    let plain = name == "*"
        || name.chars().all(word)
            && !number(name)
            && !name.eq_ignore_ascii_case("any")
            && !name.eq_ignore_ascii_case("first");
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}
