//! Paths in a run of tokens, inside macros too.

use std::collections::BTreeSet;

use proc_macro2::{Ident, TokenStream, TokenTree};

/// A path of two or more names, or a macro's name with its `!`.
#[derive(Debug)]
pub struct Mention {
    pub path: Vec<String>,
    pub line: usize,
}

/// Line of the source that a word stands in.
pub fn line(word: &Ident) -> usize {
    word.span().start().line
}

/// Gathers paths and single words.
pub fn scan(tokens: TokenStream, mentions: &mut Vec<Mention>, words: &mut BTreeSet<String>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at] {
            TokenTree::Group(group) => {
                scan(group.stream(), mentions, words);
                at += 1;
            }
            TokenTree::Ident(word) => {
                words.insert(word.to_string());
                // Behind `::` is the rest of a path that does not begin with a name, as in `<T>::name`.
                let is_begin = at < 2 || !is_separator(&tokens[at - 2..]);
                let end = path_from(&tokens, at, &[], mentions);
                at = if is_begin { end } else { at + 1 };
            }
            _ => at += 1,
        }
    }
}

/// Adds the paths that begin at a word, with `before` in front of them; returns where they end.
fn path_from(tokens: &[TokenTree], mut at: usize, before: &[String], mentions: &mut Vec<Mention>) -> usize {
    let mut path = before.to_vec();
    let mut first = 0;
    while let Some(TokenTree::Ident(word)) = tokens.get(at) {
        if first == 0 {
            first = line(word);
        }
        if word != "self" || path.is_empty() {
            path.push(word.to_string());
        }
        at += 1;
        if path.len() == 1
            && matches!(tokens.get(at), Some(TokenTree::Punct(mark)) if mark.as_char() == '!')
            && matches!(tokens.get(at + 1), Some(TokenTree::Group(_)))
        {
            path[0].push('!');
            mentions.push(Mention { path, line: first });
            return at;
        }
        if !tokens.get(at..).is_some_and(is_separator) {
            break;
        }
        match tokens.get(at + 2) {
            Some(TokenTree::Ident(_)) => at += 2,
            Some(TokenTree::Group(group)) => {
                let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                let comma =
                    |token: &TokenTree| matches!(token, TokenTree::Punct(mark) if mark.as_char() == ',');
                for part in inner.split(comma) {
                    path_from(part, 0, &path, mentions);
                }
                return at + 3;
            }
            _ => break,
        }
    }
    if path.len() > 1 {
        mentions.push(Mention { path, line: first });
    }
    at
}

/// Whether it begins with `::`.
fn is_separator(tokens: &[TokenTree]) -> bool {
    let colon =
        |token: Option<&TokenTree>| matches!(token, Some(TokenTree::Punct(mark)) if mark.as_char() == ':');
    colon(tokens.first()) && colon(tokens.get(1))
}
