//! SPDX licence expressions, as far as crates use them: `OR`, `AND`, `WITH`, parentheses, and the old `/` for `OR`.

/// Whether `expression` can be satisfied with licences for which `allowed` says yes; an error names what cannot be read.
///
/// A licence with an exception is asked for as one name: `Apache-2.0 WITH LLVM-exception`.
pub(crate) fn satisfied(expression: &str, allowed: &dyn Fn(&str) -> bool) -> Result<bool, String> {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser {
        words: &words,
        at: 0,
        allowed,
    };
    let verdict = parser.or()?;
    match parser.peek() {
        None => Ok(verdict),
        Some(word) => Err(format!("{expression:?}: unexpected {word:?}")),
    }
}

struct Parser<'a, 'w> {
    words: &'a [&'w str],
    at: usize,
    allowed: &'a dyn Fn(&str) -> bool,
}

impl<'w> Parser<'_, 'w> {
    fn or(&mut self) -> Result<bool, String> {
        let mut verdict = self.and()?;
        while self.take("OR") {
            verdict |= self.and()?;
        }
        Ok(verdict)
    }

    fn and(&mut self) -> Result<bool, String> {
        let mut verdict = self.one()?;
        while self.take("AND") {
            verdict &= self.one()?;
        }
        Ok(verdict)
    }

    fn one(&mut self) -> Result<bool, String> {
        if self.take("(") {
            let verdict = self.or()?;
            return if self.take(")") {
                Ok(verdict)
            } else {
                Err("a parenthesis is not closed".to_owned())
            };
        }
        let id = self.name()?;
        if self.take("WITH") {
            let exception = self.name()?;
            return Ok((self.allowed)(&format!("{id} WITH {exception}")));
        }
        Ok((self.allowed)(&id))
    }

    fn name(&mut self) -> Result<String, String> {
        match self.peek() {
            Some(word) if !["OR", "AND", "WITH", "(", ")"].contains(&word) => {
                self.at += 1;
                Ok(word.to_owned())
            }
            other => Err(format!("a licence is missing before {other:?}")),
        }
    }

    fn take(&mut self, word: &str) -> bool {
        let found = self.peek() == Some(word);
        self.at += usize::from(found);
        found
    }

    fn peek(&self) -> Option<&'w str> {
        self.words.get(self.at).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_expressions_that_crates_use() {
        let allowed =
            |id: &str| ["MIT", "Apache-2.0", "ISC", "Apache-2.0 WITH LLVM-exception"].contains(&id);
        for (expression, wanted) in [
            ("MIT", true),
            ("GPL-3.0", false),
            ("MIT OR GPL-3.0", true),
            ("MIT AND GPL-3.0", false),
            ("MIT/Apache-2.0", true),
            ("GPL-3.0 OR MIT AND ISC", true),
            ("(GPL-3.0 OR MIT) AND ISC", true),
            ("(GPL-3.0 OR LGPL-2.1) AND ISC", false),
            ("Apache-2.0 WITH LLVM-exception OR GPL-2.0", true),
            ("Apache-2.0 WITH Foo-exception", false),
        ] {
            assert_eq!(satisfied(expression, &allowed), Ok(wanted), "{expression}");
        }
    }

    #[test]
    fn what_it_cannot_read_is_an_error_and_never_a_yes() {
        for expression in ["", "MIT MIT", "(MIT", "OR MIT", "MIT WITH"] {
            assert!(satisfied(expression, &|_| true).is_err(), "{expression:?}");
        }
    }
}
