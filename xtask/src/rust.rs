//! Rust source as tokens and paths: enough to find forbidden names outside comments, strings and tests.
//!
//! Not a parser: no types are resolved and macros are read as they stand. Renames by `use … as …` are followed within a file.

use std::collections::BTreeMap;

/// One token and the line it stands on, counted from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) line: usize,
    pub(crate) kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Ident(String),
    Punct(char),
    /// A string, character, number or lifetime: never part of a path.
    Other,
}

impl Token {
    pub(crate) fn is(&self, punct: char) -> bool {
        self.kind == Kind::Punct(punct)
    }

    pub(crate) fn ident(&self) -> Option<&str> {
        match &self.kind {
            Kind::Ident(name) => Some(name),
            _ => None,
        }
    }
}

/// A path such as `std::time::Instant::now`, with renames of the file already followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PathUse {
    pub(crate) line: usize,
    pub(crate) segments: Vec<String>,
}

/// The tokens of `source` without comments.
pub(crate) fn tokens(source: &str) -> Vec<Token> {
    Lexer {
        chars: source.chars().collect(),
        at: 0,
        line: 1,
    }
    .run()
}

/// `tokens` without the items that are compiled for tests only.
pub(crate) fn without_tests(tokens: Vec<Token>) -> Vec<Token> {
    let mut kept = Vec::with_capacity(tokens.len());
    let mut at = 0;
    while at < tokens.len() {
        match attribute(&tokens, at) {
            Some(end) if is_test_cfg(&tokens[at..end]) => at = item_end(&tokens, end),
            Some(end) => {
                kept.extend_from_slice(&tokens[at..end]);
                at = end;
            }
            None => {
                kept.push(tokens[at].clone());
                at += 1;
            }
        }
    }
    kept
}

/// The end of the attribute `#[…]` or `#![…]` that starts at `at`, if one does.
pub(crate) fn attribute(tokens: &[Token], at: usize) -> Option<usize> {
    if !tokens.get(at)?.is('#') {
        return None;
    }
    let open = at + 1 + usize::from(tokens.get(at + 1)?.is('!'));
    if !tokens.get(open)?.is('[') {
        return None;
    }
    Some(matching(tokens, open))
}

/// Every path in `tokens`: those of `use` trees in full, and those of expressions and types with the file's renames followed.
pub(crate) fn paths(tokens: &[Token]) -> Vec<PathUse> {
    let mut imports = BTreeMap::new();
    let mut found = Vec::new();
    let mut bodies = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if tokens[at].ident() == Some("use") {
            at = use_tree(tokens, at + 1, &[], &mut found, &mut imports);
        } else {
            bodies.push(at);
            at += 1;
        }
    }
    let mut next = 0;
    for at in bodies {
        if at < next {
            continue;
        }
        let Some((mut segments, end)) = plain_path(tokens, at) else {
            continue;
        };
        next = end;
        if let Some(full) = imports.get(&segments[0]) {
            let mut resolved: Vec<String> = full.clone();
            resolved.extend(segments.drain(1..));
            segments = resolved;
        }
        found.push(PathUse {
            line: tokens[at].line,
            segments,
        });
    }
    found
}

/// `a::b::c` starting at `at`: its segments and the index after it.
fn plain_path(tokens: &[Token], at: usize) -> Option<(Vec<String>, usize)> {
    let mut segments = vec![tokens.get(at)?.ident()?.to_owned()];
    let mut end = at + 1;
    while colons(tokens, end) {
        let Some(name) = tokens.get(end + 2).and_then(Token::ident) else {
            break;
        };
        segments.push(name.to_owned());
        end += 3;
    }
    Some((segments, end))
}

/// Reads one branch of a `use` tree below `prefix` and returns the index after it.
fn use_tree(
    tokens: &[Token],
    mut at: usize,
    prefix: &[String],
    found: &mut Vec<PathUse>,
    imports: &mut BTreeMap<String, Vec<String>>,
) -> usize {
    let line = tokens.get(at).map_or(0, |t| t.line);
    let mut path = prefix.to_vec();
    loop {
        if colons(tokens, at) {
            at += 2; // a leading `::`, or the one between two segments
        }
        match tokens.get(at) {
            Some(t) if t.is('{') => return use_group(tokens, at, &path, found, imports),
            Some(t) if t.is('*') => {
                at += 1;
                break;
            }
            Some(t) => match t.ident() {
                Some(name) => {
                    path.push(name.to_owned());
                    at += 1;
                }
                None => break,
            },
            None => break,
        }
        if !colons(tokens, at) {
            break;
        }
    }
    let mut name = path.last().cloned();
    if path.last().is_some_and(|last| last == "self") && path.len() > 1 {
        path.pop();
        name = path.last().cloned();
    }
    if tokens.get(at).and_then(Token::ident) == Some("as") {
        name = tokens.get(at + 1).and_then(Token::ident).map(str::to_owned);
        at += 2;
    }
    if let Some(name) = name {
        imports.insert(name, path.clone());
    }
    found.push(PathUse {
        line,
        segments: path,
    });
    at
}

fn use_group(
    tokens: &[Token],
    open: usize,
    prefix: &[String],
    found: &mut Vec<PathUse>,
    imports: &mut BTreeMap<String, Vec<String>>,
) -> usize {
    let close = matching(tokens, open);
    let mut at = open + 1;
    while at + 1 < close {
        let end = use_tree(tokens, at, prefix, found, imports);
        at = end.max(at + 1);
        while at + 1 < close && tokens[at].is(',') {
            at += 1;
        }
    }
    close
}

fn colons(tokens: &[Token], at: usize) -> bool {
    matches!((tokens.get(at), tokens.get(at + 1)), (Some(a), Some(b)) if a.is(':') && b.is(':'))
}

fn is_test_cfg(attribute: &[Token]) -> bool {
    let names: Vec<&str> = attribute.iter().filter_map(Token::ident).collect();
    names.first() == Some(&"cfg")
        && names.contains(&"test")
        && !names.contains(&"not")
        && !names.contains(&"any")
}

/// The index after the item at `at`: past its further attributes, to its `;` or its closing brace.
fn item_end(tokens: &[Token], mut at: usize) -> usize {
    while let Some(end) = attribute(tokens, at) {
        at = end;
    }
    while at < tokens.len() {
        if tokens[at].is(';') {
            return at + 1;
        }
        if tokens[at].is('{') {
            return matching(tokens, at);
        }
        at = if tokens[at].is('(') || tokens[at].is('[') {
            matching(tokens, at)
        } else {
            at + 1
        };
    }
    at
}

/// The index after the bracket that closes the one at `open`.
fn matching(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.kind {
            Kind::Punct('(' | '[' | '{') => depth += 1,
            Kind::Punct(')' | ']' | '}') => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
    }
    tokens.len()
}

struct Lexer {
    chars: Vec<char>,
    at: usize,
    line: usize,
}

impl Lexer {
    fn run(mut self) -> Vec<Token> {
        let mut tokens = Vec::new();
        while let Some(c) = self.peek(0) {
            let line = self.line;
            if let Some(kind) = self.step(c) {
                tokens.push(Token { line, kind });
            }
        }
        tokens
    }

    /// Consumes one token, comment or blank.
    fn step(&mut self, c: char) -> Option<Kind> {
        match c {
            '/' if self.peek(1) == Some('/') => {
                self.skip_while(|c| c != '\n');
                None
            }
            '/' if self.peek(1) == Some('*') => {
                self.block_comment();
                None
            }
            '"' => {
                self.string();
                Some(Kind::Other)
            }
            '\'' => {
                self.quote();
                Some(Kind::Other)
            }
            c if c.is_whitespace() => {
                self.bump();
                None
            }
            c if c.is_ascii_digit() => {
                self.skip_while(|c| c.is_alphanumeric() || c == '_');
                Some(Kind::Other)
            }
            c if c.is_alphabetic() || c == '_' => Some(self.word()),
            c => {
                self.bump();
                Some(Kind::Punct(c))
            }
        }
    }

    /// An identifier, or the literal that a prefix such as `r#"`, `b"`, `br"`, `c"`, `b'` starts.
    fn word(&mut self) -> Kind {
        let start = self.at;
        self.skip_while(|c| c.is_alphanumeric() || c == '_');
        let word: String = self.chars[start..self.at].iter().collect();
        match (word.as_str(), self.peek(0)) {
            ("r" | "br" | "cr", Some('"' | '#')) => {
                let hashes = self.count_hashes();
                if self.peek(0) == Some('"') {
                    self.raw_string(hashes);
                    return Kind::Other;
                }
                // `r#name`: the identifier follows.
                let start = self.at;
                self.skip_while(|c| c.is_alphanumeric() || c == '_');
                Kind::Ident(self.chars[start..self.at].iter().collect())
            }
            ("b" | "c", Some('"')) => {
                self.string();
                Kind::Other
            }
            ("b", Some('\'')) => {
                self.quote();
                Kind::Other
            }
            _ => Kind::Ident(word),
        }
    }

    fn block_comment(&mut self) {
        let mut depth = 0_usize;
        while let Some(c) = self.peek(0) {
            match (c, self.peek(1)) {
                ('/', Some('*')) => {
                    depth += 1;
                    self.bump();
                }
                ('*', Some('/')) => {
                    depth -= 1;
                    self.bump();
                }
                _ => {}
            }
            self.bump();
            if depth == 0 {
                return;
            }
        }
    }

    fn string(&mut self) {
        self.bump();
        while let Some(c) = self.peek(0) {
            self.bump();
            match c {
                '\\' => self.bump(),
                '"' => return,
                _ => {}
            }
        }
    }

    fn raw_string(&mut self, hashes: usize) {
        self.bump();
        while let Some(c) = self.peek(0) {
            self.bump();
            if c == '"' && (0..hashes).all(|i| self.peek(i) == Some('#')) {
                self.at += hashes;
                return;
            }
        }
    }

    /// A character literal or a lifetime.
    fn quote(&mut self) {
        self.bump();
        if self.peek(0) == Some('\\') {
            self.bump();
            self.bump();
            self.skip_while(|c| c != '\'');
            self.bump();
        } else if self.peek(1) == Some('\'') {
            self.bump();
            self.bump();
        } else {
            self.skip_while(|c| c.is_alphanumeric() || c == '_');
        }
    }

    fn count_hashes(&mut self) -> usize {
        let start = self.at;
        self.skip_while(|c| c == '#');
        self.at - start
    }

    fn skip_while(&mut self, go: impl Fn(char) -> bool) {
        while self.peek(0).is_some_and(&go) {
            self.bump();
        }
    }

    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn bump(&mut self) {
        if self.peek(0) == Some('\n') {
            self.line += 1;
        }
        self.at += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(source: &str) -> Vec<String> {
        paths(&without_tests(tokens(source)))
            .into_iter()
            .map(|p| format!("{}:{}", p.line, p.segments.join("::")))
            .collect()
    }

    #[test]
    fn comments_strings_and_lifetimes_hold_no_paths() {
        let source = r##"
            // std::fs::read
            /* std::fs /* nested */ std::net */
            fn f<'a>(x: &'a str) { g("std::fs", r#"std::"net"#, b'\'', '"', 'x'); }
        "##;
        assert_eq!(found(source), ["4:fn", "4:f", "4:x", "4:str", "4:g"]);
    }

    #[test]
    fn use_trees_are_written_out_and_renames_followed() {
        let source = "use std::{fs::{self, File as F}, net};\nfn f() { F::open(fs::x); net::TcpStream::connect() }";
        let all = found(source);
        for wanted in [
            "1:std::fs",
            "1:std::fs::File",
            "1:std::net",
            "2:std::fs::File::open",
            "2:std::fs::x",
            "2:std::net::TcpStream::connect",
        ] {
            assert!(all.contains(&wanted.to_owned()), "{wanted} not in {all:?}");
        }
    }

    #[test]
    fn test_items_are_left_out_and_the_rest_kept() {
        let source = "#[cfg(test)]\nmod tests { use std::fs; fn x() { a::b() } }\n#[cfg(not(test))] use std::net;\n#[cfg(test)] #[path = \"t.rs\"] mod t;\nfn g() { c::d() }";
        let all = found(source);
        assert!(all.iter().any(|p| p.ends_with("std::net")));
        assert!(all.iter().any(|p| p.ends_with("c::d")));
        assert!(
            !all.iter()
                .any(|p| p.contains("std::fs") || p.contains("a::b"))
        );
    }

    #[test]
    fn lines_are_counted_through_strings_and_comments() {
        let source = "/*\n\n*/ \"\n\n\"; a::b";
        assert_eq!(found(source), ["5:a::b"]);
    }
}
